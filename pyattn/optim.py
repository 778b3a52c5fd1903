"""Adam, for the dicts that ``module.parameters()`` and ``value_and_grad`` give."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pyattn.tensor import Array


class Adam:
    """Adam, with weight decay apart from the gradient (AdamW) and clipping of the global norm.

    At step t, with the gradient g of a parameter p, clipped to ``g * min(1, max_norm / |g|)`` where
    the norm goes over all parameters together::

        m = b1 m + (1 - b1) g                  v = b2 v + (1 - b2) g^2
        p = p - rate * weight_decay * p - rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    rate:
        The step size; an attribute that may be set between updates, for a schedule.
    betas:
        b1 and b2, at least 0 and below 1.
    eps:
        Added to the root; positive.
    weight_decay:
        0 is Adam as in the paper.
    max_norm:
        The largest norm of all gradients together; None does not clip.

    Notes
    -----
    ``means``, ``squares`` and ``steps`` are its whole state: dicts of arrays by the names of the
    parameters, which :func:`pyattn.save` takes, and a count.

    References
    ----------
    Kingma and Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, algorithm 1;
    Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization", arXiv:1711.05101; Pascanu,
    Mikolov and Bengio 2012, arXiv:1211.5063, for clipping.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> layer = pa.nn.Linear(1, 1, rng=np.random.default_rng(0))
    >>> x = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    >>> loss = pa.value_and_grad(lambda layer: pa.ops.mean((layer(x) - 3.0 * x) ** 2))
    >>> adam = pa.optim.Adam(rate=0.1)
    >>> for _ in range(200):
    ...     value, gradients = loss(layer)
    ...     norm = adam.update(layer.parameters(), gradients)
    >>> layer.weight.round(2).tolist()
    [[3.0]]
    """

    def __init__(
        self,
        *,
        rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Adam: betas must be two numbers in [0, 1); got {betas}")
        for name, value in (("rate", rate), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Adam: {name} must be finite and not negative; got {value}")
        for name, bound in (("eps", eps), ("max_norm", max_norm)):
            if bound is not None and not bound > 0:
                raise ValueError(f"Adam: {name} must be positive; got {bound}")
        self.rate, self.betas, self.eps = rate, betas, eps
        self.weight_decay, self.max_norm = weight_decay, max_norm
        self.steps = 0
        self.means: dict[str, Array] = {}
        self.squares: dict[str, Array] = {}

    def update(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> float:
        """Change the arrays of ``parameters`` in place; return the norm of ``gradients``.

        The norm is that before clipping. Raises ValueError, and changes nothing, where names,
        shapes or dtypes differ, a parameter cannot be written, or the norm is not finite.
        """
        _check(parameters, gradients)
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
        if not math.isfinite(norm):
            raise ValueError(f"Adam: the norm of the gradients is {norm}")
        scale = 1.0 if self.max_norm is None else min(1.0, self.max_norm / max(norm, 1e-300))
        self.steps += 1
        first, second = self.betas
        rate = self.rate / (1 - first**self.steps)
        correction = math.sqrt(1 - second**self.steps)
        for name, parameter in parameters.items():
            gradient = gradients[name] * parameter.dtype.type(scale)
            mean = self.means.setdefault(name, np.zeros_like(parameter))
            square = self.squares.setdefault(name, np.zeros_like(parameter))
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient * gradient - square)
            if self.weight_decay:
                parameter *= 1 - self.rate * self.weight_decay
            parameter -= rate * mean / (np.sqrt(square) / correction + self.eps)
        return norm


def _check(parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
    if parameters.keys() != gradients.keys():
        differing = sorted(parameters.keys() ^ gradients.keys())
        raise ValueError(
            f"Adam: parameters and gradients must have the same names; not {differing}"
        )
    for name, parameter in parameters.items():
        gradient = gradients[name]
        for kind, array in (("parameter", parameter), ("gradient", gradient)):
            if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
                found = getattr(array, "dtype", type(array).__name__)
                raise TypeError(f"Adam: {kind} {name} must be float32 or float64; got {found}")
        if (parameter.shape, parameter.dtype) != (gradient.shape, gradient.dtype):
            raise ValueError(
                f"Adam: {name} is {parameter.dtype} {parameter.shape}; its gradient is "
                f"{gradient.dtype} {gradient.shape}"
            )
        if not parameter.flags.writeable:
            raise ValueError(f"Adam: {name} is read-only; got an array of shape {parameter.shape}")
