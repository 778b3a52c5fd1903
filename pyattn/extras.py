"""Libraries that only some functions need, imported when they do."""

from __future__ import annotations

from importlib import import_module


def needs(module: str, extra: str) -> None:
    """Raise ModuleNotFoundError that says which extra of pyattn brings a missing module."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs {error.name}, which the extra pyattn[{extra}] brings", name=error.name
        ) from None
