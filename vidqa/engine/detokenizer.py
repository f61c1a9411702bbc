"""Token ids to text, and the answer that grows from them."""

from typing import Any

from vidqa.engine.sampler import Sampler
from vidqa.types import Request


class Detokenizer:
    """Turns token ids into text as they come, without splitting a character's UTF-8 bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._before = ""  # text of the ids that stay only as context for the next ones
        self._context = 0

    def push(self, token: int) -> str:
        """Add one id; return the text that is complete by it, often nothing or a word."""
        self._pending.append(token)
        text = self._decode()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""  # perhaps part of a character: wait for the rest
        return self._emit(text)

    def flush(self) -> str:
        """Return the remaining text; an incomplete character becomes U+FFFD."""
        return self._emit(self._decode())

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _emit(self, text: str) -> str:
        fresh = text[len(self._before) :]
        # Keep the last emitted ids as context: some decoders join words by what came before.
        self._pending = self._pending[self._context :]
        self._context = len(self._pending)
        self._before = self._decode()
        return fresh


class AnswerState:
    """The answer so far: `tokens` are its ids. The attempt after one that ran out of memory continues it."""

    def __init__(self, request: Request) -> None:
        self.sampler = Sampler(request.temperature, request.top_p, request.seed)
        self.tokens: list[int] = []
        self._text = ""
        self._detokenizer: Detokenizer | None = None

    @property
    def text(self) -> str:
        """The answer without surrounding whitespace."""
        return self._text.strip()

    def append(self, token: int, tokenizer: Any) -> str:
        """Add one token; return the text that is complete by it."""
        self.tokens.append(token)
        self._detokenizer = self._detokenizer or Detokenizer(tokenizer)
        return self._add(self._detokenizer.push(token))

    def flush(self) -> str:
        """Return the text of an incomplete last character."""
        return self._add(self._detokenizer.flush()) if self._detokenizer else ""

    def _add(self, text: str) -> str:
        self._text += text
        return text
