"""The base of all modules: an object whose array attributes are its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from pyattn.tensor import Array, Tensor


class Module:
    """A holder of parameters with a ``__call__``.

    Parameters are the attributes that are float arrays; attributes that are modules, or lists,
    tuples and dicts of modules, are searched too. A name that begins with an underscore is private
    and is left out. A module is a plain object otherwise: no registration, no training mode, no
    hidden state.
    """

    def parameters(self) -> dict[str, Array]:
        """Return the parameters by their dotted names, in the order of assignment.

        A module that is held in two places is listed once, under its first name.
        """
        return {name: getattr(owner, key) for name, owner, key in self._slots("", set())}

    def _slots(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module, str]]:
        if id(self) in seen:
            return
        seen.add(id(self))
        for key, value in vars(self).items():
            if key.startswith("_"):
                continue
            if isinstance(value, (np.ndarray, Tensor)) and value.dtype.kind in "fV":
                yield prefix + key, self, key
            for name, child in _children(prefix + key, value):
                yield from child._slots(f"{name}.", seen)

    def replace(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with the named parameters replaced; this module stays as it is.

        Raises KeyError for a name that is not a parameter.
        """
        result: Self = _copy(self, {})
        slots = {name: (owner, key) for name, owner, key in result._slots("", set())}
        for name, value in values.items():
            if name not in slots:
                raise KeyError(f"{type(self).__name__} has no parameter {name!r}")
            owner, key = slots[name]
            setattr(owner, key, value)
        return result

    def load(self, values: Mapping[str, Array]) -> Self:
        """Set every parameter to a copy of the one in ``values``; return this module.

        Raises ValueError that lists all missing and unexpected names and all wrong shapes and
        dtypes; nothing is changed then.
        """
        slots = {name: (owner, key) for name, owner, key in self._slots("", set())}
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
            setattr(owner, attribute, np.array(values[name]))
        return self


def _children(name: str, value: Any) -> Iterator[tuple[str, Module]]:
    """Yield the modules in an attribute, alone or in lists, tuples and dicts, with their names."""
    if isinstance(value, Module):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _children(f"{name}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _children(f"{name}.{key}", item)


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    """Copy modules and what holds them; arrays are shared, and so are modules held twice."""
    if isinstance(value, Module):
        if id(value) not in copies:
            copies[id(value)] = result = copy.copy(value)
            for key, item in vars(value).items():
                setattr(result, key, _copy(item, copies))
        return copies[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_copy(item, copies) for item in value)
    if type(value) is dict:
        return {key: _copy(item, copies) for key, item in value.items()}
    return value


def uniform(rng: np.random.Generator | None, shape: tuple[int, ...], fan_in: int) -> Array:
    """Return float32 numbers uniform in ``+-1 / sqrt(fan_in)``; zeros without a generator.

    Zeros are for a module whose parameters are loaded next: drawing millions of numbers to throw
    them away would dominate the loading of a checkpoint.
    """
    if min(shape) < 1:
        raise ValueError(f"the sizes of a parameter must be positive; got {shape}")
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator or None; got {type(rng).__name__}")
    if rng is None:
        return np.zeros(shape, np.float32)
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(np.float32)
