"""Frames to vision embeddings, a group of temporal slices at a time."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidqa.devices.torch_device import page_locked
from vidqa.engine.no_grad import no_grad_scope
from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec
from vidqa.models.vlm import VisionLanguageModel
from vidqa.types import Plan
from vidqa.video.reader import VideoReader


@dataclass(frozen=True, slots=True)
class PreparedFrame:
    """A frame at its final size, (3, height, width) uint8, and its time."""

    pixels: Tensor
    timestamp_seconds: float


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """Embeddings (tokens, hidden) of `slices` temporal slices and their frames' times.

    If tokens were dropped, `kept` has the places of each slice's kept ones.
    """

    embeddings: Tensor
    slices: int
    timestamps_seconds: tuple[float, ...]
    kept: tuple[Tensor, ...] = ()


class GroupEncoder:
    """Collects frames of one size and encodes them in groups; pixels are freed when their group is encoded."""

    def __init__(self, model: VisionLanguageModel, group_slices: int) -> None:
        self._model = model
        self._size = group_slices * model.spec.vision.temporal_patch
        self._waiting: list[PreparedFrame] = []

    def push(self, frame: PreparedFrame) -> bool:
        """Add a frame; return whether the group is complete, and is to be encoded now."""
        self._waiting.append(frame)
        return len(self._waiting) == self._size

    @no_grad_scope()
    def encode(self) -> EncodedGroup | None:
        """Encode the collected frames, if any. An odd last frame is doubled, as in transformers."""
        if not self._waiting:
            return None
        if len(self._waiting) % self._model.spec.vision.temporal_patch:
            self._waiting.append(self._waiting[-1])
        times = tuple(frame.timestamp_seconds for frame in self._waiting)
        _, height, width = self._waiting[0].pixels.shape
        patch = self._model.spec.vision.patch
        # Nested, so that no name here keeps alive what the next step has replaced.
        model = self._model
        encoded = model.family.encode(
            model.visual, self._patches(), height // patch, width // patch, model.check_cancel
        )
        return EncodedGroup(encoded.flatten(0, 1), encoded.shape[0], times)

    def _patches(self) -> Tensor:
        """Take the collected frames as patches (slices, patches, values) on the device.

        Pixels cross to a GPU as bytes from page-locked memory: a quarter of the float32 patches, without waiting.
        """
        model, device = self._model, self._model.device
        pixels = page_locked((len(self._waiting), *self._waiting[0].pixels.shape), torch.uint8, device)
        torch.stack([frame.pixels for frame in self._waiting], out=pixels)  # (n, 3, height, width)
        self._waiting.clear()
        pixels = pixels.to(device, non_blocking=True)
        return model.family.to_patches(pixels, model.spec).to(model.dtype)


def planned_frames(reader: VideoReader, plan: Plan, spec: ModelSpec) -> tuple[Plan, list[Any]]:
    """Return the plan's frames as the model gets them, arrays (height, width, 3) uint8, and the plan with their times.

    A frame that cannot be decoded is replaced by another one. Raises VideoError children if too few can.
    """
    resize_frame = family_of(spec).load_runtime().resize_frame
    size = (plan.run_config.height, plan.run_config.width)
    frames, times = list[Any](), list(plan.timestamps_seconds)
    for place, frame in enumerate(reader.frames(plan.indices)):
        times[place] = frame.timestamp_seconds
        frames.append(resize_frame(frame.rgb, *size).permute(1, 2, 0).numpy())
    reader.check_coverage(plan.indices)
    return replace(plan, timestamps_seconds=tuple(times)), frames
