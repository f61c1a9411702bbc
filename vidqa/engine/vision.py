"""Frames to vision embeddings, a group of temporal slices at a time.

Pixels live until their group is encoded. Knows patches and the model; knows no files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidqa.devices.torch_device import page_locked
from vidqa.engine.no_grad import no_grad_scope
from vidqa.models.vlm import VisionLanguageModel


@dataclass(frozen=True, slots=True)
class PreparedFrame:
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
    """Takes pictures of one size as they come, and encodes them a group at a time."""

    def __init__(self, model: VisionLanguageModel, group_slices: int) -> None:
        self._model = model
        self._size = group_slices * model.spec.vision.temporal_patch
        self._waiting: list[PreparedFrame] = []

    def push(self, picture: PreparedFrame) -> bool:
        """Add one picture; whether it completes a group, which is to be encoded then."""
        self._waiting.append(picture)
        return len(self._waiting) == self._size

    @no_grad_scope()
    def encode(self) -> EncodedGroup | None:
        """Encode what waits, if anything. An odd last frame is doubled, as the reference does."""
        if not self._waiting:
            return None
        if len(self._waiting) % self._model.spec.vision.temporal_patch:
            self._waiting.append(self._waiting[-1])
        times = tuple(picture.timestamp_seconds for picture in self._waiting)
        _, height, width = self._waiting[0].pixels.shape
        patch = self._model.spec.vision.patch
        # Nested, so that no name here keeps alive what the next step has replaced.
        model = self._model
        encoded = model.family.encode(
            model.visual, self._patches(), height // patch, width // patch, model.check_cancel
        )
        return EncodedGroup(encoded.flatten(0, 1), encoded.shape[0], times)

    def _patches(self) -> Tensor:
        """The waiting pictures as patches (slices, patches, values) on the device; none waits afterwards.

        Pixels cross to a GPU as bytes from page-locked memory: a quarter of the float32 patches, without waiting.
        """
        model, device = self._model, self._model.device
        pixels = page_locked((len(self._waiting), *self._waiting[0].pixels.shape), torch.uint8, device)
        torch.stack([picture.pixels for picture in self._waiting], out=pixels)  # (n, 3, height, width)
        self._waiting.clear()
        pixels = pixels.to(device, non_blocking=True)
        return model.family.to_patches(pixels, model.spec).to(model.dtype)
