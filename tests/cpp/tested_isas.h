// The instruction sets that the tests of vec_functions.h go through.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "core/isa.h"
#include "vec_functions.h"

namespace pyattn::testing {

// Those that this machine can run, best first.
inline std::vector<const IsaFunctions*> functions() {
  const std::vector<std::string> names = available_isas();
  std::vector<const IsaFunctions*> here;
  for (const IsaFunctions* built : {
#ifdef PYATTN_X86
           &avx512_functions, &avx2_functions,
#endif
#ifdef PYATTN_NEON
           &neon_functions,
#endif
           &scalar_functions}) {
    if (std::find(names.begin(), names.end(), built->name) != names.end()) here.push_back(built);
  }
  return here;
}

}  // namespace pyattn::testing
