"""From tokens to text, as they come."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.tokenizer import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes of a character in UTF-8
_CONTEXT = 32  # tokens of the prompt that tell how the text begins
_MOST = 64  # tokens that are kept though they give no text


class Detokenizer:
    """Gives the text that each token adds; the pieces make what the tokens are decoded to.

    A token may hold part of a character, and a space may depend on the token before. So tokens are
    decoded together with those of the last piece, and what follows their text is the next piece.
    What could still become another character is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._begin = 0  # of the tokens of the last piece
        self._told = 0
        for token in prompt[-_CONTEXT:]:
            self.push(token)

    def push(self, token: int) -> str:
        """Return what `token` adds."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        end = max(self._told, _whole(text))
        piece, self._told = text[self._told : end], end
        if end == len(text) and (piece or len(self._tokens) > _MOST):
            self._tokens = self._tokens[self._begin :]
            self._begin = len(self._tokens)
            self._told = len(self._tokenizer.decode(self._tokens))
        return piece

    def finish(self) -> str:
        """Return what was held back."""
        return self._tokenizer.decode(self._tokens)[self._told :]


def _whole(text: str) -> int:
    """Return how many characters of `text` are whole; a broken one at the end may still be."""
    return max(len(text.rstrip(_BROKEN)), len(text) - _LONGEST)


class StopStrings:
    """Passes text on up to the first of some strings.

    Attributes
    ----------
    found : bool
        Whether one of them came.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Return the text that is certainly before a stop string."""
        text = self._held + piece
        places = [place for s in self._strings if (place := text.find(s)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, s) for s in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that `string` begins with."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
