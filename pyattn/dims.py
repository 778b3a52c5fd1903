"""Dimensions whose size only a run knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias


class TraceError(TypeError):
    """Raised where Python asks a traced value for a number that only a run can know."""


@dataclass(frozen=True)
class Dim:
    """A named dynamic dimension, such as ``Dim("batch")``.

    Two dimensions are equal when their names and their owners are. Nothing else can be asked of
    them: a model that branches on a dynamic size would be exported for one size only.

    What has an owner is told from others of its name, by a number behind it in an exported file.
    """

    name: str
    owner: object = None
    product: tuple[Dim, int] | None = field(default=None, compare=False)
    """The dimension and the number that this is the product of, where it is one."""

    def _refuse(self, *_: object) -> NoReturn:
        raise TraceError(
            f"dimension {self.name!r} is dynamic and has no value while tracing; use ops.reshape "
            "with 0 (copy) and -1 (infer), ops.arange_like, or masks instead of reading the size"
        )

    __bool__ = __int__ = __index__ = __float__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __sub__ = __rsub__ = __mod__ = __floordiv__ = __truediv__ = _refuse

    def __add__(self, other: object) -> Dim:
        return self if other == 0 else self.derived(f"{self} + {other}", other)

    __radd__ = __add__

    def __mul__(self, other: object) -> Dim:
        if other == 1:
            return self
        if not isinstance(other, int):
            return self.derived(f"{self}*{other}", other)
        base, factor = self.product or (self, 1)
        whole = base.derived(f"{base}*{factor * other}")
        return Dim(whole.name, whole.owner, (base, factor * other))

    __rmul__ = __mul__

    def derived(self, name: str, other: object = None) -> Dim:
        """Return the dimension that follows from this one, and from another if it is one."""
        owners = self.owner, other.owner if isinstance(other, Dim) else None
        return Dim(name, None if owners == (None, None) else owners)

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


Size: TypeAlias = int | Dim
