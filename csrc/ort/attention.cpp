// Scaled dot-product and additive attention, (B, H, T, D).
#include "core/attention.h"

#include <algorithm>

#include "core/backward.h"
#include "core/isa.h"
#include "ort/call.h"

namespace pyattn::ort {
namespace {

constexpr std::int64_t kFarthest = std::int64_t{1} << 40;  // of a position

// The parameters of a run and the memory that they point to.
template <class X>
class AttentionCall {
 public:
  using T = Compute<X>;

  explicit AttentionCall(const Call& call) : call_(call) {
    check();
    const Tensor& query = call.tensor(Role::query);
    params.query = view_of<const X, 4>(query);
    params.key = view_of<const X, 4>(call.tensor(Role::key));
    params.value = view_of<const X, 4>(call.tensor(Role::value));
    params.batch = query.shape[0];
    params.keys = params.key.shape[2];
    params.scale = static_cast<T>(call.scale());
    params.softcap = static_cast<T>(call.variant().softcap);
    params.mask = mask_of<X>(call, {query.shape[0], query.shape[1], query.shape[2], params.keys},
                             params.keys);
    lengths_ = call.integers(Role::lengths, params.batch, 0, params.key.shape[2]);
    if (call.find(Role::lengths) != nullptr) params.kv_lengths = lengths_.data();
    set_positions();
    set_vectors();
  }

  AttentionParams<X> params;

 private:
  void check() const {
    const auto all = {Role::query, Role::key, Role::value};
    call_.require_axes(4);
    const auto& q = call_.tensor(Role::query).shape;
    const auto& k = call_.tensor(Role::key).shape;
    const auto& v = call_.tensor(Role::value).shape;
    call_.require(q[0] == k[0] && q[0] == v[0], "query, key and value must share B", all);
    call_.require(k[1] == v[1], "key and value must share G", all);
    call_.require(k[2] == v[2], "key and value must share S", all);
    call_.require(q[3] == k[3], "query and key must share D", all);
    call_.require_groups();
    if (call_.variant().mechanism != Mechanism::additive) return;
    call_.require(q[1] == k[1], "query and key must share H", all);
    const Tensor& direction = call_.tensor(Role::v);
    call_.require(direction.rank == 2 && direction.shape[0] == q[1] && direction.shape[1] == q[3],
                  "v must be (H, A)", {Role::query, Role::v});
  }

  void set_positions() {
    const Variant& variant = call_.variant();
    params.left = variant.left;
    params.right = variant.right;
    const std::int64_t rows = params.query.shape[2];
    if (variant.starts) {
      starts_ = call_.integers(Role::starts, params.batch, -kFarthest, kFarthest);
    } else if (variant.bottom_right) {
      starts_.assign(static_cast<std::size_t>(params.batch), params.key.shape[2] - rows);
      for (std::size_t b = 0; b < lengths_.size(); ++b) starts_[b] = lengths_[b] - rows;
    } else if (variant.start != 0) {
      starts_.assign(static_cast<std::size_t>(params.batch), variant.start);
    }
    if (!starts_.empty()) params.query_starts = starts_.data();
  }

  void set_vectors() {
    params.slopes = call_.of_heads<T>(Role::slopes);
    params.sinks = call_.of_heads<T>(Role::sinks);
    if (call_.variant().mechanism != Mechanism::additive) return;
    // The mechanism is told by this address, which an empty tensor has not.
    static constexpr T kNone = 0;
    const Tensor& direction = call_.tensor(Role::v);
    params.v = direction.count() == 0 ? &kNone : widened<X>(direction, direction_);
  }

  const Call& call_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::int64_t> starts_;
  std::vector<T> direction_;
};

// The results of a run: those of the kernel's main pass in `params`, the others apart.
template <class X>
class Results {
 public:
  using T = Compute<X>;

  Results(const Call& call, AttentionParams<X>& params) : params_(params) {
    for (std::size_t i = 0; i < call.results(); ++i) {
      const Tensor tensor = call.result(i);
      if (tensor.data != nullptr) place(call.output(i), tensor);
    }
    if (mass_.data == nullptr) return;
    if (params.lse.data == nullptr) {  // the column mass is made of it
      const Tensor& query = call.tensor(Role::query);
      lse_.resize(static_cast<std::size_t>(query.shape[0] * query.shape[1] * query.shape[2]));
      Tensor rows = query;
      rows.rank = 3;
      rows.data = lse_.data();
      params.lse = view_of<T, 3>(rows);
    }
  }

  // After the main pass.
  void run_others() const {
    for (const auto& [stage, view] : scores_) run_mechanism(scores_of(params_, stage, view));
    if (mass_.data == nullptr) return;
    BackwardParams<X> params{.forward = params_};
    params.forward.out.data = params.forward.weights.data = nullptr;
    const View<T, 3>& lse = params_.lse;
    params.forward.given_lse.data = lse.data;
    std::copy(lse.shape, lse.shape + 3, params.forward.given_lse.shape);
    std::copy(lse.stride, lse.stride + 3, params.forward.given_lse.stride);
    params.column_mass = mass_;
    run_column_mass(params, attention_kernels_of<X>(kernels()).backward);
  }

 private:
  void place(Output output, const Tensor& tensor) {
    switch (output) {
      case Output::out:
        params_.out = view_of<X, 4>(tensor);
        break;
      case Output::weights:
        params_.weights = view_of<X, 4>(tensor);
        break;
      case Output::lse:
        params_.lse = view_of<T, 3>(tensor);
        break;
      case Output::max:
        params_.max = view_of<T, 3>(tensor);
        break;
      case Output::entropy:
        params_.entropy = view_of<T, 3>(tensor);
        break;
      case Output::column_mass:
        mass_ = view_of<T, 3>(tensor);
        break;
      case Output::scores:
        scores_.push_back({ScoreStage::plain, view_of<X, 4>(tensor)});
        break;
      case Output::capped_scores:
        scores_.push_back({ScoreStage::capped, view_of<X, 4>(tensor)});
        break;
      default:
        scores_.push_back({ScoreStage::biased, view_of<X, 4>(tensor)});
    }
  }

  AttentionParams<X>& params_;
  std::vector<std::pair<ScoreStage, View<X, 4>>> scores_;
  View<T, 3> mass_;
  std::vector<T> lse_;
};

}  // namespace

template <class X>
void compute_attention(const Call& call) {
  AttentionCall<X> own(call);
  const Results<X> results(call, own.params);
  run_mechanism(own.params);
  results.run_others();
}

template void compute_attention<float>(const Call&);
template void compute_attention<double>(const Call&);
template void compute_attention<Half>(const Call&);
template void compute_attention<BFloat16>(const Call&);

}  // namespace pyattn::ort
