"""The answer as it grows: its tokens, its text, and the sampler that chooses the next one.

It outlives an attempt that ran out of memory: the next attempt reads what was said and goes
on, so nothing that was shown is taken back. Knows tokens and characters.
"""

from typing import Any

from vidqa.engine.decode import Detokenizer
from vidqa.engine.sampler import Sampler
from vidqa.types import Request


class AnswerState:
    """What was said so far. `tokens` are all ids of the answer."""

    def __init__(self, request: Request) -> None:
        self.sampler = Sampler(request.temperature, request.top_p, request.seed)
        self.tokens: list[int] = []
        self._parts: list[str] = []
        self._stream: Detokenizer | None = None

    @property
    def text(self) -> str:
        """The answer without the blanks around it."""
        return "".join(self._parts).strip()

    def say(self, token: int, tokenizer: Any) -> str:
        """Add one token; returns the text that is now certain."""
        self.tokens.append(token)
        if self._stream is None:
            self._stream = Detokenizer(tokenizer)
        return self._keep(self._stream.push(token))

    def finish(self) -> str:
        """The text that was still waiting for the rest of a character."""
        return self._keep(self._stream.flush()) if self._stream else ""

    def _keep(self, text: str) -> str:
        if text:
            self._parts.append(text)
        return text
