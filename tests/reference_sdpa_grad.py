"""Float64 oracle of the gradients of attention, in closed form, row by row.

The cotangents are those of the output and of the log-sum-exp. Nothing here imports the library.
"""

from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from tests.reference_sdpa import Array, Options, Problem, Row, float64, problem_of, rows_of


def sdpa_gradients(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    out_cotangent: ArrayLike,
    lse_cotangent: ArrayLike | None = None,
    **options: Unpack[Options],
) -> dict[str, Array]:
    """Gradients of ``sum(out * out_cotangent) + sum(lse * lse_cotangent)`` with float64 results.

    With weights p, dropout factors m, scores s and cotangents g (of a row of out) and l (of lse)::

        dvalue_j = p_j m_j g              dp_j = m_j (value_j . g)
        ds_j = p_j (dp_j - sum_k p_k dp_k + l)
        dsink = p_sink (l - sum_k p_k dp_k),   p_sink = exp(sink - lse)
        draw_j = ds_j (1 - tanh(raw_j / c)^2), dq = scale sum_j draw_j k_j, dk_j = scale draw_j q

    With the option ``v``, and t = tanh(q + k_j), the last line is::

        dq = sum_j ds_j v (1 - t_j^2)   dk_j = ds_j v (1 - t_j^2)   dv = sum_j ds_j t_j

    The gradient of a float mask is ds, summed over the axes along which it was broadcast. A
    masked pair has gradient 0 everywhere. In a row without a key lse is the sink itself, if there
    is one, which then has gradient l; without one the row has gradient 0 throughout.

    Returns
    -------
    Arrays under "query", "key", "value", and, as far as they were given, "v", "mask" (a float one),
    "sinks", "past_key", "past_value"; each of the shape of its argument.
    """
    problem = problem_of(query, key, value, options)
    g_out = float64(out_cotangent)
    g_lse = np.zeros(g_out.shape[:3]) if lse_cotangent is None else float64(lse_cotangent)
    d_query, d_key, d_value = (np.zeros_like(a) for a in _arrays(problem))
    d_bias = np.zeros((*g_out.shape[:3], problem.key.shape[2]))
    d_sinks = np.zeros(problem.query.shape[1])
    d_v = None if problem.v is None else np.zeros_like(problem.v)
    for row in rows_of(problem):
        at, group = (row.b, row.h, row.i), row.h // problem.repeats
        keys, values = problem.key[row.b, group, row.keys], problem.value[row.b, group, row.keys]
        d_weights = row.factors * (values @ g_out[at])
        mean = float(row.weights @ d_weights)
        d_bias[at][row.keys] = row.weights * (d_weights - mean + g_lse[at])
        if problem.sinks is not None:
            sink = np.exp(problem.sinks[row.h] - row.lse)
            d_sinks[row.h] += sink * (g_lse[at] - mean)
        d_raw = d_bias[at][row.keys] * _cap_slope(problem, row)
        if problem.v is None or d_v is None:
            d_query[at] = problem.scale * d_raw @ keys
            d_key[row.b, group, row.keys] += problem.scale * np.outer(d_raw, problem.query[at])
        else:
            t = np.tanh(problem.query[at] + keys)
            inner = d_raw[:, None] * problem.v[row.h] * (1 - t**2)
            d_query[at] = inner.sum(axis=0)
            d_key[row.b, group, row.keys] += inner
            d_v[row.h] += d_raw @ t
        d_value[row.b, group, row.keys] += np.outer(row.weights * row.factors, g_out[at])
    past = problem.key.shape[2] - np.shape(key)[2]
    gradients = {"query": d_query, "key": d_key[:, :, past:], "value": d_value[:, :, past:]}
    if past:
        gradients |= {"past_key": d_key[:, :, :past], "past_value": d_value[:, :, :past]}
    if problem.sinks is not None:
        gradients["sinks"] = d_sinks
    if d_v is not None:
        gradients["v"] = d_v
    if problem.masks is not None and problem.masks.dtype != np.bool_:
        gradients["mask"] = sum_to(d_bias, np.asarray(options["mask"]).shape)
    return gradients


def _arrays(problem: Problem) -> tuple[Array, Array, Array]:
    return problem.query, problem.key, problem.value


def _cap_slope(problem: Problem, row: Row) -> Array:
    """Derivative of the cap at the row's raw scores."""
    if problem.softcap <= 0:
        return np.ones(row.raw.shape)
    return 1.0 - (row.capped / problem.softcap) ** 2


def sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of broadcasting a mask of `shape`: sum over the axes that it repeats.

    A last axis shorter than the array's, and not 1, was padded: the rest of the array is dropped.
    """
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    if shape[-1] != 1:
        array = array[..., : shape[-1]]
    repeated = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return np.asarray(array.sum(axis=repeated, keepdims=True))
