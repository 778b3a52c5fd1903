"""The base of all modules: an object whose array attributes are its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from pyattn.tensor import Array, Tensor


class Module:
    """A holder of parameters with a ``__call__``.

    Parameters are the attributes that are float arrays; attributes that are modules, or lists of
    modules, are searched too. A name that begins with an underscore is private and is left out.
    A module is a plain object otherwise: no registration, no training mode, no hidden state.
    """

    def parameters(self) -> dict[str, Array]:
        """Return the parameters by their dotted names, in the order of assignment."""
        return {prefix + name: getattr(owner, name) for prefix, owner, name in self._slots("")}

    def _slots(self, prefix: str) -> Iterator[tuple[str, Any, str]]:
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            if isinstance(value, (np.ndarray, Tensor)) and value.dtype.kind in "fV":
                yield prefix, self, name
            for path, child in _children(name, value):
                yield from child._slots(f"{prefix}{path}.")

    def replace(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with the named parameters replaced; this module stays as it is.

        Raises KeyError for a name that is not a parameter.
        """
        result = self._copy()
        slots = {prefix + name: (owner, name) for prefix, owner, name in result._slots("")}
        for name, value in values.items():
            if name not in slots:
                raise KeyError(f"{type(self).__name__} has no parameter {name!r}")
            owner, attribute = slots[name]
            setattr(owner, attribute, value)
        return result

    def _copy(self) -> Self:
        result = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Module):
                setattr(result, name, value._copy())
            elif isinstance(value, list):
                copies = [v._copy() if isinstance(v, Module) else v for v in value]
                setattr(result, name, copies)
        return result

    def load(self, values: Mapping[str, Array]) -> Self:
        """Set every parameter from ``values``, in place, and return the module.

        Raises ValueError that lists all missing and unexpected names and all wrong shapes and
        dtypes; nothing is changed then.
        """
        slots = {prefix + name: (owner, name) for prefix, owner, name in self._slots("")}
        problems = [f"missing {name}" for name in slots if name not in values]
        problems += [f"unexpected {name}" for name in values if name not in slots]
        for name in slots.keys() & values.keys():
            owner, attribute = slots[name]
            have, given = getattr(owner, attribute), values[name]
            if have.shape != given.shape or have.dtype != given.dtype:
                problems.append(
                    f"{name} must be {have.dtype} {have.shape}; got {given.dtype} {given.shape}"
                )
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(sorted(problems)))
        for name, (owner, attribute) in slots.items():
            setattr(owner, attribute, values[name])
        return self


def _children(name: str, value: Any) -> Iterator[tuple[str, Module]]:
    if isinstance(value, Module):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if isinstance(item, Module):
                yield f"{name}.{i}", item


def uniform(rng: np.random.Generator | None, shape: tuple[int, ...], fan_in: int) -> Array:
    """Return float32 numbers uniform in ``+-1 / sqrt(fan_in)``; zeros without a generator.

    Zeros are for a module whose parameters are loaded next: drawing millions of numbers to throw
    them away would dominate the loading of a checkpoint.
    """
    if rng is None:
        return np.zeros(shape, np.float32)
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(np.float32)
