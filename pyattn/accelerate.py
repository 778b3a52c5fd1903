"""Attention of any ONNX model, replaced by calls of pyattn's functions."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyattn.export import VerificationError
from pyattn.extras import needs
from pyattn.io import atomic_write
from pyattn.model_file import inspect, one_line

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Matched:
    """One attention that was replaced.

    ``name`` is that of its operator, or of its softmax; ``kind`` how it was written; ``function``
    what it is now. Numbers that depend on the input are None; ``key_heads`` is None where keys have
    as many heads as queries. ``mask`` is ``"none"``, ``"boolean"``, ``"float"`` or ``"lengths"``.
    """

    name: str
    kind: str
    function: str
    heads: int | None
    key_heads: int | None
    head_size: int | None
    mask: str
    causal: bool
    scale: float

    def __str__(self) -> str:
        grouped = f" of {self.key_heads}" if self.key_heads is not None else ""
        return (
            f"{self.name} ({self.kind}): heads {self.heads or 'dynamic'}{grouped}, size "
            f"{self.head_size or 'dynamic'}, mask {self.mask}, "
            f"{'causal' if self.causal else 'not causal'}, scale {self.scale:.6g} -> "
            f"{self.function}"
        )


@dataclass(frozen=True)
class Left:
    """Something that looks like attention and was left as it is, and why."""

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}): {self.reason}"


@dataclass(frozen=True)
class Accelerated:
    """What :func:`accelerate` returns; its ``str`` is a report.

    ``difference`` is the largest difference between an output of the original and of the result on
    random inputs, None if they were not compared.
    """

    model: onnx.ModelProto
    matched: tuple[Matched, ...]
    left: tuple[Left, ...]
    difference: float | None = None

    def __str__(self) -> str:
        if not self.matched and not self.left:
            return "no attention found; the model is unchanged"
        lines = [f"replaced: {len(self.matched)}", *(f"  {x}" for x in self.matched)]
        if self.left:
            lines += [f"left: {len(self.left)}", *(f"  {x}" for x in self.left)]
        if not self.matched:
            lines.append("the model is unchanged")
        elif self.difference is not None:
            lines.append(f"largest difference on random inputs: {self.difference:.2g}")
        return "\n".join(lines)


def accelerate(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
) -> Accelerated:
    """Replace the attention of an ONNX model by calls of pyattn's functions.

    The functions are those that :func:`export` writes: ``pyattn::ScaledDotProductAttention...``,
    whose bodies are standard operators. The result runs on any ONNX Runtime, and on the kernels of
    those that know an operator of that name.

    Found are softmax(Q K^T) V written out in the ways of PyTorch's two exporters and of older ones
    (scales on queries, keys or scores, masks added or selected, repeated heads, heads folded into
    the batch), the operator ``Attention`` of ONNX, and ``Attention``, ``MultiHeadAttention`` and
    ``GroupQueryAttention`` of the domain com.microsoft; also in the branches of If and Loop.

    Parameters
    ----------
    model:
        A file, its bytes, or a ModelProto; of opset 13 or later. Weights in files beside the model
        are not read.
    path:
        Where to write the result, if anywhere. It appears there complete, or not at all; in another
        folder than the model's, the files with the weights are copied first.
    verify:
        Whether to run the original and the result in ONNX Runtime on random inputs: dynamic sizes
        are chosen, integers are small, masks are ones with some zeros.

    Returns
    -------
    Accelerated
        The new model, and what was replaced, what was left and why. A model in which nothing was
        replaced is returned, and written, as it came.

    Raises
    ------
    TypeError
        When ``model`` is nothing of the above.
    FileNotFoundError
        When there is no such file, or one of its weights is missing.
    ValueError
        When the model is damaged, or :func:`pyattn.ort.session` would refuse it unseen: a
        :class:`pyattn.ort.ModelError` where its weights are not in plain files inside its folder,
        for example.
    VerificationError
        When an output of the result differs from the original's by more than 1e-4 (2e-2 in float16
        and bfloat16) and 1e-4 of its largest entry, or when ONNX Runtime runs one of them not.
    ModuleNotFoundError
        When onnx-ir is missing, which the extra ``pyattn[onnx]`` brings.

    Notes
    -----
    Something is replaced only where the result is certainly the same, with one exception: a query
    for which a mask of -inf leaves no key gets 0, where a plain softmax gives NaN. Where scores or
    weights are read elsewhere, as an output of the model for example, the attention is left.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
    ... g (float[B, 4, T, 8] q, float[B, 4, 8, S] k, float[B, 4, S, 8] v) => (float[B, 4, T, 8] y) {
    ...     scores = MatMul(q, k)
    ...     weights = Softmax(scores)
    ...     y = MatMul(weights, v)
    ... }''')
    >>> print(pa.accelerate(model, verify=False))
    replaced: 1
      weights (MatMul, Softmax, MatMul): heads 4, size 8, mask none, not causal, scale 1 -> \
ScaledDotProductAttention
    """
    needs("onnx_ir", "onnx")
    proto, data, folder = _read(model)
    content = proto.SerializeToString() if data is None else data
    found = inspect(content, Path(folder) if folder else None, "accelerate")
    result, matched, left = _rewritten(proto, folder)
    difference = None
    if verify and matched:
        from pyattn.rewrite.verify import Difference, compare

        try:
            difference = compare(proto, result, folder)
        except Difference as error:
            raise VerificationError(f"accelerate: {one_line(error)}") from error
    if path is not None:
        if matched or data is None:
            content = result.SerializeToString()
        _write(content, Path(path), sorted(found.locations), folder)
    return Accelerated(result, tuple(matched), tuple(left), difference)


def _read(model: Any) -> tuple[onnx.ModelProto, bytes | None, str]:
    """Return the model, the bytes that it came in, and the folder of its weights."""
    import onnx

    if isinstance(model, onnx.ModelProto):
        return model, None, ""
    if not isinstance(model, (bytes, str, os.PathLike)):
        raise TypeError(
            f"accelerate: model must be a path, bytes or a ModelProto; got {type(model).__name__}"
        )
    folder = ""
    if not isinstance(model, bytes):
        file = Path(model)
        if not file.is_file():
            raise FileNotFoundError(f"accelerate: there is no file {file}")
        model, folder = file.read_bytes(), str(file.parent.resolve())
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:
        raise ValueError(
            f"accelerate: this is not a readable ONNX model: {one_line(error)}"
        ) from error
    return proto, model, folder


def _rewritten(proto: onnx.ModelProto, folder: str) -> tuple[onnx.ModelProto, list[Any], list[Any]]:
    """Rewrite the model; ValueError where it is none."""

    from pyattn.rewrite.engine import rewrite

    if not proto.graph.node or not proto.opset_import:
        raise ValueError(
            "accelerate: this is not a readable ONNX model: it has no nodes or no opset"
        )
    try:
        return rewrite(proto, folder)
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"accelerate: the model is damaged, or of no known kind: {what}"
        ) from error


def _write(content: bytes, target: Path, locations: list[str], folder: str) -> None:
    """Write the model, behind the weights that it refers to."""
    for named in locations:
        source, copy = Path(folder, named), target.parent / named
        if copy.exists() and copy.samefile(source):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, atomic_write(copy) as write:
            shutil.copyfileobj(read, write)
    with atomic_write(target) as file:
        file.write(content)
