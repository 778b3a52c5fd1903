"""Arrays of other libraries: read in place through DLPack, answered in kind.

Every function works on NumPy arrays and Tensors. One that finds another library's array among its
arguments hands itself and them to :func:`call`, which runs it on views of the same memory and turns
the results into what the first array is. Where the arguments are NumPy arrays nothing is done and
nothing is asked.

No library is imported for this: whoever has an array of one has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pyattn import _core

_Array: TypeAlias = NDArray[Any]
_Importer: TypeAlias = Callable[[Any], Any]


def is_foreign(value: object) -> bool:
    """Return whether ``value`` is an array of another library: not NumPy's, with ``__dlpack__``."""
    return hasattr(type(value), "__dlpack__") and not isinstance(value, np.ndarray)


def as_ndarray(name: str, value: Any) -> _Array:
    """Return a NumPy view of the memory of any CPU array; a NumPy array comes back as it is.

    Parameters
    ----------
    name:
        The function and the argument, ``"additive_attention: key"``, with which errors begin.
    value:
        An array with ``__dlpack__``, of any strides: float16, bfloat16 (which becomes
        ``ml_dtypes.bfloat16``), float32, float64, bool, or integers. The view keeps it alive, and
        is read-only where the library says so or cannot say.

    Raises
    ------
    TypeError
        For something that is no array, another dtype, or an array without numbers, as in a trace.
    ValueError
        For an array that is not in the memory of the CPU, or that requires a gradient, which would
        be lost here.
    """
    if isinstance(value, np.ndarray):
        return value
    if not is_foreign(value):
        raise TypeError(
            f"{name} must be a NumPy array or another CPU array with __dlpack__; "
            f"got {type(value).__name__}"
        )
    if getattr(value, "requires_grad", False):
        raise ValueError(
            f"{name} requires a gradient, which does not cross into pyattn and back: pass it "
            "detached, .detach(); pyattn.grad differentiates functions of NumPy arrays"
        )
    # PyTorch exports the memory of a lazily negated tensor without the sign.
    if callable(negated := getattr(value, "is_neg", None)) and negated():
        raise ValueError(f"{name} is negated lazily: pass it resolved, .resolve_neg()")
    try:
        return _core.from_dlpack(value)
    except (TypeError, AttributeError) as error:
        raise TypeError(f"{name}: {_first_line(error)}") from error
    except (ValueError, BufferError, RuntimeError) as error:
        raise ValueError(f"{name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # PyTorch's errors may have a C++ stack behind it


def writable_ndarray(name: str, value: Any) -> _Array:
    """Return :func:`as_ndarray` of an array to write to; ValueError where that is not allowed."""
    array = as_ndarray(name, value)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only; got {type(value).__name__} {array.shape}")
    return array


def like(original: Any, result: Any) -> Any:
    """Return an ndarray as an array of the library that ``original`` comes from, without a copy.

    The library may copy: JAX does where memory is not aligned to 64 bytes. Anything but an ndarray,
    and an ndarray for a NumPy ``original``, comes back as it is.
    """
    if not isinstance(result, np.ndarray) or not is_foreign(original):
        return result
    made = _core.same_kind(original, result)
    if made is not None:
        return made
    make = _importer(original)
    try:
        return make(_core.to_dlpack(result))
    except (RuntimeError, BufferError):
        # Some libraries have no strided arrays.
        if result.flags.c_contiguous:
            raise
        return make(_core.to_dlpack(result.copy()))


def _importer(original: Any) -> _Importer:
    """Return ``from_dlpack`` of the library of an array."""
    if hasattr(original, "__array_namespace__"):
        return cast("_Importer", original.__array_namespace__().from_dlpack)
    for base in type(original).__mro__:
        package: Any = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(package, "from_dlpack"):
            return cast("_Importer", package.from_dlpack)
    kind = type(original)
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} can be read but not made: its package has no "
        "from_dlpack; pass a NumPy array, as from numpy.from_dlpack"
    )


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Return ``function(**arguments)`` with NumPy views of foreign arrays, results in kind.

    ``arguments`` is ``locals()`` of the function itself; names that are not its parameters are
    left out.
    """
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    given = {name: arguments[name] for name in names}
    return through(function.__name__, lambda views: function(**views), given)


def through(
    name: str, function: Callable[[dict[str, Any]], Any], arguments: Mapping[str, Any]
) -> Any:
    """Return ``function(arguments)`` with NumPy views in place of foreign arrays.

    Results are of the kind of the first argument. A result that is the view of an argument comes
    back as that argument.
    """
    first = next(iter(arguments.values()))
    if is_foreign(first):
        _importer(first)  # an error, if one, before the work
    views = {
        key: as_ndarray(f"{name}: {key}", value) if is_foreign(value) else value
        for key, value in arguments.items()
    }
    originals = {id(views[key]): value for key, value in arguments.items() if is_foreign(value)}

    def in_kind(result: Any) -> Any:
        return originals[id(result)] if id(result) in originals else like(first, result)

    result = function(views)
    return tuple(map(in_kind, result)) if isinstance(result, tuple) else in_kind(result)
