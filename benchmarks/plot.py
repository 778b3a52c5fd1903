"""The picture of speed over sequence length, from the suite `sdpa-length`."""

from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Results

TITLES = {"float32": "float32", "bfloat16": "bfloat16, and float16 (dashed)"}
# One colour for each function (after Okabe and Ito, which the colour-blind can tell apart), and a
# dashed line for float16.
COLOURS = {
    "pyattn": "#000000",
    "torch": "#d55e00",
    "onnxruntime Attention": "#0072b2",
    "onnxruntime MultiHeadAttention": "#56b4e9",
    "onnxruntime GroupQueryAttention": "#12355b",
    "openvino": "#009e73",
    "jax": "#cc79a7",
    "numpy": "#888888",
}
LABELS = {
    "onnxruntime Attention": "ONNX Runtime Attention",
    "onnxruntime MultiHeadAttention": "ONNX Runtime MultiHead",
    "onnxruntime GroupQueryAttention": "ONNX Runtime GroupQuery",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "numpy": "NumPy",
}
LABEL_GAP = 0.052  # of the height of the picture

Points = list[tuple[int, float]]


def write(path: Path, results: Results) -> bool:
    """Draw the picture; False where there is nothing to draw, or nothing to draw it with."""
    panels = {dtype: curves(results, dtype) for dtype in TITLES}
    panels = {dtype: found for dtype, found in panels.items() if found}
    if not panels:
        return False
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as missing:
        print(f"the picture is left out: {missing}")
        return False
    matplotlib.use("Agg")
    figure, axes = import_module("matplotlib.pyplot").subplots(
        1, len(panels), figsize=(7.4 * len(panels), 5.4), squeeze=False, layout="constrained"
    )
    for axis, (dtype, found) in zip(axes[0], panels.items(), strict=True):
        _draw(axis, found, TITLES[dtype], limit(results, dtype))
    shape = next(r["case"] for r in results["rows"] if report.suite_of(r) == report.PLOTTED)
    batch, heads, *_, depth = shape.split("/")[2].split(",")
    figure.suptitle(
        f"Causal attention, batch {batch}, {heads} heads of {depth}, {results['threads']} threads, "
        f"{results['machine']['cpu']}",
        fontsize=12,
    )
    figure.savefig(path, dpi=150)
    return True


def curves(results: Results, dtype: str) -> dict[str, Points]:
    """Length and 10^9 operations per second of every contender of one dtype that was timed."""
    found: dict[str, Points] = {}
    for row in results["rows"]:
        parts = row["case"].split("/")
        if parts[0] == report.PLOTTED and parts[1] == dtype and row["median"]:
            length = int(parts[2].split(",")[3])
            found.setdefault(row["contender"], []).append((length, report.rate(row) / 1e9))
    return found


def limit(results: Results, dtype: str) -> float:
    """The fastest matrix product of the run in the dtype; 0 where none was measured."""
    kind = {"float32": "matmul_float32_flops", "bfloat16": "matmul_bfloat16_flops"}[dtype]
    rates: dict[str, float] = results["limits"].get(kind, {})
    return max(rates.values(), default=0.0) / 1e9


def _draw(axis: Any, found: dict[str, Points], title: str, ceiling: float) -> None:
    lengths = sorted({length for points in found.values() for length, _ in points})
    for name, points in found.items():
        mine = name.startswith("pyattn")
        function, dtype = _parts(name)
        axis.plot(
            *zip(*points, strict=True),
            color=COLOURS.get(function, "#666666"),
            linestyle="--" if dtype == "float16" else "-",
            linewidth=2.6 if mine else 1.4,
            marker="o",
            markersize=5 if mine else 3,
            zorder=3 if mine else 2,
        )
    if ceiling:
        axis.axhline(ceiling, color="#666666", linewidth=1, linestyle=(0, (1, 3)))
        axis.annotate(
            "fastest matrix product", (lengths[0], ceiling), (0, 3), textcoords="offset points",
            fontsize=9, color="#666666",
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.set_xlim(lengths[0] * 0.85, lengths[-1] * 1.15)
    axis.set_ylim(0, 1.12 * max(ceiling, *(y for points in found.values() for _, y in points)))
    axis.set(title=title, xlabel="sequence length", ylabel="GFLOP/s, counting allowed pairs only")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6")
    _label(axis, found)


def _parts(name: str) -> tuple[str, str]:
    """A contender's function and, where its name ends with one, its dtype."""
    function, _, last = name.rpartition(" ")
    return (function, last) if last in ("bfloat16", "float16") else (name, "")


def _label(axis: Any, found: dict[str, Points]) -> None:
    """Name the lines at their right ends, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    left, right = axis.get_xlim()
    ordered = sorted(found.items(), key=lambda item: item[1][-1][1])
    heights = spread([points[-1][1] for _, points in ordered], LABEL_GAP * (high - low))
    for (name, points), height in zip(ordered, heights, strict=True):
        function, dtype = _parts(name)
        axis.annotate(
            f"{LABELS.get(function, function)} {dtype}".strip(),
            xy=points[-1],
            xytext=(right * (right / left) ** 0.03, height),
            va="center",
            fontsize=9.5,
            fontweight="bold" if name.startswith("pyattn") else "normal",
            color=COLOURS.get(function, "#666666"),
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#cccccc", "linewidth": 0.7, "shrinkB": 4},
        )


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved as little as it takes for neighbours to be `gap` apart.

    Labels that would overlap form a block around the mean of their heights; blocks that then
    overlap become one.
    """
    blocks: list[tuple[float, int]] = []
    for height in heights:
        mean, count = height, 1
        while blocks and mean - blocks[-1][0] < gap * (count + blocks[-1][1]) / 2:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    return [mean + gap * (i - (count - 1) / 2) for mean, count in blocks for i in range(count)]
