"""The prompt as rows of embeddings: text before the video, the video, text after it.

Vision embeddings wait in one buffer, on the device or on the host; text is embedded when
its chunk is asked for. Knows rows; knows nothing of pixels or attention.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidqa.models.qwen2_vl import Qwen2VL


class PromptEmbeddings:
    """Rows (tokens, hidden) of a prompt. Slicing gives them on the device, in the compute precision."""

    def __init__(
        self, model: Qwen2VL, head: Sequence[int], visual_tokens: int, tail: Sequence[int], *, on_host: bool
    ) -> None:
        self._model = model
        self._head, self._tail = tuple(head), tuple(tail)
        place = torch.device("cpu") if on_host else model.device
        self._visual = torch.empty(visual_tokens, model.spec.hidden, dtype=model.dtype, device=place)
        self._filled = 0

    @property
    def visual_tokens(self) -> int:
        """Tokens of the video so far."""
        return self._filled

    def __len__(self) -> int:
        return len(self._head) + self._filled + len(self._tail)

    def add(self, embeddings: Tensor) -> None:
        """Append the embeddings (tokens, hidden) of the next slices."""
        end = self._filled + embeddings.shape[0]
        self._visual[self._filled : end] = embeddings
        self._filled = end

    def __getitem__(self, rows: slice) -> Tensor:
        start, end, _ = rows.indices(len(self))
        before, after = len(self._head), len(self._head) + self._filled
        chunk = torch.empty(end - start, self._visual.shape[1], dtype=self._model.dtype, device=self._model.device)
        for first, last, part in ((0, before, self._head), (before, after, None), (after, len(self), self._tail)):
            low, high = max(start, first), min(end, last)
            if low < high:
                inside = slice(low - first, high - first)
                chunk[low - start : high - start] = self._visual[inside] if part is None else self._text(part[inside])
        return chunk

    def _text(self, ids: Sequence[int]) -> Tensor:
        return self._model.embed(torch.tensor(ids))
