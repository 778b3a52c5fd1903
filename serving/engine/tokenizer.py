"""The tokenizer that lies beside a model, read by the library ``tokenizers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .failures import ModelError
from .model_file import ModelFile, beside
from .model_settings import ModelSettings

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "pyattn.tokenizer"
USUAL_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "[EOS]")


class Tokenizer:
    """Text to tokens and back.

    Attributes
    ----------
    name : str
        Of its file.
    size : int
        How many tokens there are.
    max_length : int or None
        Most tokens of a text; what is longer is cut.
    ends : frozenset of int
        The tokens that end a text.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        max_length: int | None = None,
        ends: Sequence[str | int] = (),
        name: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self.name = name
        self.size: int = tokenizer.get_vocab_size()
        self.max_length = max_length
        tokenizer.no_padding()
        if max_length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(max_length)
        found = [tokenizer.token_to_id(end) if isinstance(end, str) else end for end in ends]
        self.ends = frozenset(token for token in found if token is not None)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, the special ones that the tokenizer adds included."""
        return [encoding.ids for encoding in self.encodings(texts)]

    def encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Return the same with the text of each token and where it comes from."""
        return list(self._tokenizer.encode_batch(list(texts)))

    def token(self, number: int) -> str | None:
        """Return the text of a token, None where there is no such token."""
        return self._tokenizer.id_to_token(number)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones."""
        return self._tokenizer.decode(list(tokens))


def find_tokenizer(
    file: ModelFile, settings: ModelSettings, *, whole: bool, end: int | None = None
) -> Tokenizer | str:
    """Return the tokenizer of a model, or why it has none.

    Parameters
    ----------
    file : ModelFile
        Its metadata ``pyattn.tokenizer`` names the tokenizer's file, with the rules of external
        data. A file that is not there is no fault: the model may be used without text.
    settings : ModelSettings
        May name another one, which must be there.
    whole : bool
        Whether texts are never cut: a prompt says most in its end.
    end : int, optional
        The token that ends a text, where the file says so and the settings do not.

    Raises
    ------
    ModelError
        The file may not be read, or is no tokenizer.
    """
    name = settings.tokenizer or file.metadata.get(TOKENIZER)
    if name is None:
        return "no tokenizer lies beside it"
    if settings.tokenizer is None and not (file.path.parent / name).is_file():
        return "its tokenizer is missing"
    path = beside(file.path, name, "tokenizer")
    try:
        import tokenizers
    except ImportError:
        return "the server needs the library tokenizers, which the extra pyattn[serve] brings"
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - the library raises plain ones
        raise ModelError(f"model file {file.path}: tokenizer {name!r}: {error}") from None
    cut = None if tokenizer.truncation is None else tokenizer.truncation["max_length"]
    length = None if whole else settings.max_length or cut
    told: Sequence[str | int] = USUAL_ENDS if end is None else (end,)
    ends = told if settings.end_tokens is None else settings.end_tokens
    if length is not None and length <= tokenizer.num_special_tokens_to_add(False):
        raise ModelError(f"model file {file.path}: a text of {length} tokens has special ones only")
    made = Tokenizer(tokenizer, length, ends, path.name)
    if settings.end_tokens is not None and len(made.ends) != len(set(settings.end_tokens)):
        raise ModelError(f"model file {file.path}: the tokenizer lacks one of {list(ends)}")
    return made
