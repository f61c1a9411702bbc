"""Frames to vision embeddings, a group of temporal slices at a time.

Pixels live until their group is encoded. Knows patches and the model; knows no files.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from vidqa.engine.scope import without_grad
from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.video.patches import to_patches

Picture = tuple[Tensor, float]  # (3, height, width) uint8 at its final size, and its time in seconds


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """Embeddings (tokens, hidden) of `slices` temporal slices and their frames' times."""

    embeddings: Tensor
    slices: int
    timestamps_seconds: tuple[float, ...]


@without_grad
def encode_video(model: Qwen2VL, pictures: Iterable[Picture], group_slices: int) -> Generator[EncodedGroup, None, None]:
    """Cut and embed a stream of equal pictures, `group_slices` temporal slices at a time.

    An odd last frame is doubled, as the reference does.
    """
    vision = model.spec.vision
    for pixels, times in _groups(pictures, group_slices * vision.temporal_patch):
        if missing := -len(pixels) % vision.temporal_patch:
            pixels = torch.cat((pixels, pixels[-1:].expand(missing, -1, -1, -1)))
            times = times + times[-1:] * missing
        patches = to_patches(pixels, patch=vision.patch, temporal_patch=vision.temporal_patch, merge=vision.merge)
        rows, columns = pixels.shape[2] // vision.patch, pixels.shape[3] // vision.patch
        yield EncodedGroup(model.encode(patches, rows, columns), len(patches), times)


def _groups(pictures: Iterable[Picture], size: int) -> Iterator[tuple[Tensor, tuple[float, ...]]]:
    """Collect pictures: (n, 3, height, width) uint8 with their times, n ≤ size."""
    for batch in batched(pictures, size):
        pixels, times = zip(*batch, strict=True)
        yield torch.stack(pixels), times


def batched(items: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Lists of up to `size` items (itertools.batched, which Python 3.11 lacks)."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
