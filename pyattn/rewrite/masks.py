"""Masks: what is added to scores, or replaces them, as one argument of pyattn's function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from pyattn.dtypes import FLOATS
from pyattn.rewrite import causal, facts
from pyattn.rewrite.facts import Size, Unmatched
from pyattn.rewrite.scores import MASKED, Bias
from pyattn.rewrite.writer import Call, Writer


def with_four_axes(bias: Bias, split: int | None, has_heads: bool, writer: Writer) -> Bias:
    """Return a bias that broadcasts to (B, H, T, S)."""
    known = facts.rank(bias.value)
    if known is None or known > bias.rank:
        raise Unmatched("the number of axes of a mask is not known")
    if bias.rank == 4 or known < 3:
        return bias
    if has_heads:
        raise Unmatched("a mask is added to scores that have heads and batch in one axis")
    first = (facts.dims(bias.value) or [None])[0]
    value = writer.unsqueeze(bias.value, 1)
    if split is not None and first != 1:
        value = writer.reshape(value, [-1, split, 0, 0])
    return replace(bias, value=value)


def to_one_dtype(call: Call, biases: list[Bias], writer: Writer) -> None:
    """Bring queries, keys, values and masks to one dtype: float32 where they differ.

    So too where float16 scores are replaced by a finite number: pyattn adds in float32, where a row
    that is masked everywhere would not come out the same.
    """
    names = ("query", "key", "value")
    dtypes = {getattr(call, name).dtype for name in names}
    dtypes |= {bias.value.dtype for bias in biases if bias.fill is None}
    finite = any(bias.fill is not None and np.isfinite(bias.fill) for bias in biases)
    if None in dtypes or not {str(x.numpy()) for x in dtypes if x is not None} <= set(FLOATS):
        shown = ", ".join(sorted(str(x) for x in dtypes))
        raise Unmatched(f"queries, keys, values and masks are of {shown}")
    narrow = dtypes & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    if len(dtypes) == 1 and not (narrow and finite):
        return
    wide = ir.DataType.DOUBLE if ir.DataType.DOUBLE in dtypes else ir.DataType.FLOAT
    for name in names:
        setattr(call, name, writer.cast(getattr(call, name), wide))


def combined(
    biases: list[Bias], call: Call, sizes: list[Size] | None, writer: Writer
) -> tuple[ir.Value | None, bool]:
    """Return one mask for all biases, and whether queries see no later key.

    ``sizes`` are those of the scores.
    """
    rest = _without_causal(biases, sizes)
    is_causal = rest is not biases
    if not rest:
        return None, is_causal
    if all(bias.fill == -np.inf for bias in rest):
        mask = _kept(rest[0], writer)
        for bias in rest[1:]:
            mask = writer.node("And", mask, _kept(bias, writer), dtype=ir.DataType.BOOL)
        return mask, is_causal
    total = None
    for bias in rest:  # in the order of the graph: what is replaced forgets what was added before
        total = _with_bias(total, bias, call.query.dtype, writer)
    return total, is_causal


def _without_causal(biases: list[Bias], sizes: list[Size] | None) -> list[Bias]:
    """Return what is left of the biases when queries see no later key; themselves if they may.

    Where other biases hide every earlier key, a finite number at the later ones would be seen: only
    -inf may then be taken out, and only if nothing is replaced by a finite number behind it.
    """
    split = [part for bias in biases for part in _conditions(bias)]
    taken = [bias for bias in split if causal.is_causal(bias, sizes)]
    if not taken:
        return biases
    rest = [bias for bias in split if bias not in taken and not _always_holds(bias)]
    hides = all(bias.fill == -np.inf for bias in taken)
    finite = any(bias.fill is not None and np.isfinite(bias.fill) for bias in rest)
    return biases if rest and (finite or not hides) else rest


def _always_holds(bias: Bias) -> bool:
    return bias.fill is not None and bias.where and causal.is_true(bias.value)


def _conditions(bias: Bias) -> list[Bias]:
    """Return the conditions that must all hold for a key to be seen."""
    both = facts.producer(bias.value, "And") if bias.fill == -np.inf and bias.where else None
    if both is None or None in both.inputs:
        return [bias]
    parts = (replace(bias, value=value) for value in both.inputs if value is not None)
    return [condition for part in parts for condition in _conditions(part)]


def _kept(bias: Bias, writer: Writer) -> ir.Value:
    if bias.where:
        return bias.value
    return writer.node("Not", bias.value, dtype=ir.DataType.BOOL)


def _with_bias(
    total: ir.Value | None, bias: Bias, dtype: ir.DataType | None, writer: Writer
) -> ir.Value:
    """Return the float mask ``total``, or zero, with one more bias."""
    if dtype is None:
        raise Unmatched("the dtype of the queries is not known")
    if bias.fill is None:
        value = writer.cast(bias.value, dtype)
        if total is not None:
            return writer.node("Add" if bias.sign == 1 else "Sub", total, value, dtype=dtype)
        return value if bias.sign == 1 else writer.node("Neg", value, dtype=dtype)
    fill = bias.fill if bias.fill <= MASKED else np.finfo(np.float32).min
    low = writer.constant(np.array(fill, dtype.numpy()))
    kept = writer.constant(np.array(0, dtype.numpy())) if total is None else total
    choice = (kept, low) if bias.where else (low, kept)
    return writer.node("Where", bias.value, *choice, dtype=dtype)
