"""The tokenizer of a model: the file that its metadata names, read once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..engine.failures import ModelError, UnsupportedError
from ..engine.model import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_loaded: WeakKeyDictionary[Model, Tokenizer] = WeakKeyDictionary()


def tokenizer_of(model: Model) -> Tokenizer | None:
    """Return the tokenizer of a model, None where it has none. Raises like `load_tokenizer`.

    The first call for a model reads the file, so it does not belong into an event loop.
    """
    if model.tokenizer is None:
        return None
    found = _loaded.get(model)
    if found is None:
        found = _loaded[model] = load_tokenizer(model.tokenizer)
    return found


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``; it cuts texts as the file says, and pads nothing.

    Raises
    ------
    UnsupportedError
        The library ``tokenizers`` is not installed.
    ModelError
        The file cannot be read, or is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnsupportedError(
            "this needs the library tokenizers, which the extra pyattn[text] brings"
        ) from None
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # noqa: BLE001 -- the library raises plain Exception
        raise ModelError(f"the file {path.name} is not a tokenizer that can be read") from None
    tokenizer.no_padding()
    return tokenizer
