"""Frames to vision embeddings, a group of temporal slices at a time.

Pixels live until their group is encoded. Knows patches and the model; knows no files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.video.patches import to_patches


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame at its final size, (3, height, width) uint8, and its time."""

    pixels: Tensor
    timestamp_seconds: float


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """Embeddings (tokens, hidden) of `slices` temporal slices and their frames' times."""

    embeddings: Tensor
    slices: int
    timestamps_seconds: tuple[float, ...]


class GroupEncoder:
    """Takes pictures of one size as they come; gives a group's embeddings whenever one is full."""

    def __init__(self, model: Qwen2VL, group_slices: int) -> None:
        self._model = model
        self._size = group_slices * model.spec.vision.temporal_patch
        self._waiting: list[Picture] = []

    def push(self, picture: Picture) -> EncodedGroup | None:
        """Add one picture; returns the group that it completes, if any."""
        self._waiting.append(picture)
        return self.flush() if len(self._waiting) == self._size else None

    def flush(self) -> EncodedGroup | None:
        """Encode what waits, if anything. An odd last frame is doubled, as the reference does."""
        pictures, self._waiting = self._waiting, []
        if len(pictures) % self._model.spec.vision.temporal_patch:
            pictures.append(pictures[-1])
        return self._encode(pictures) if pictures else None

    @torch.no_grad()
    def _encode(self, pictures: list[Picture]) -> EncodedGroup:
        vision = self._model.spec.vision
        pixels = torch.stack([picture.pixels for picture in pictures])  # (n, 3, height, width)
        patches = to_patches(pixels, patch=vision.patch, temporal_patch=vision.temporal_patch, merge=vision.merge)
        rows, columns = pixels.shape[2] // vision.patch, pixels.shape[3] // vision.patch
        times = tuple(picture.timestamp_seconds for picture in pictures)
        return EncodedGroup(self._model.encode(patches, rows, columns), len(patches), times)
