"""Frames to patches: resize, normalise, cut; bit-identical with the reference.

The reference is qwen-vl-utils' resize (float bicubic with antialias, clamp, round), then transformers' Qwen2-VL video
processor with do_resize=False. Resizing runs on the host, with the reference's own bicubic kernel; the rest is exact
elementwise arithmetic and runs on the device of the pixels.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vidqa.devices.torch_device import to_device
from vidqa.models.spec import ModelSpec

if TYPE_CHECKING:
    import numpy

# CLIP's channel statistics (Radford et al. 2021), which Qwen2-VL's processor uses.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_frame(rgb: "numpy.ndarray", height: int, width: int) -> Tensor:
    """Resize one picture (h, w, 3) uint8 to (3, height, width) uint8."""
    image = torch.from_numpy(rgb).permute(2, 0, 1)  # (3, h, w)
    if image.shape[1:] == (height, width):
        return image.contiguous()
    resized = interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True)[0]
    return resized.clamp_(0, 255).round_().to(torch.uint8)


def normalise(frames: Tensor) -> Tensor:
    """Map (n, 3, height, width) uint8 to float32 with CLIP's statistics, fused as transformers does."""
    mean, deviation = _statistics(frames.device)
    return frames.to(torch.float32).sub_(mean).div_(deviation)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return means and deviations (3, 1, 1) on a device."""
    scale = 1.0 / (1 / 255)  # rounds as transformers' fused rescale factor does
    both = torch.tensor((_MEAN, _STD)).mul_(scale)[:, :, None, None]
    mean, deviation = to_device(both, device)
    return mean, deviation


def to_patches(frames: Tensor, spec: ModelSpec) -> Tensor:
    """Cut (n, 3, height, width) uint8 frames into the vision tower's rows.

    n is a multiple of `temporal_patch`. Return (slices, patches, 3·temporal_patch·patch²) float32, with the `merge`²
    patches of a token next to each other.
    """
    patch, temporal_patch, merge = spec.vision.patch, spec.vision.temporal_patch, spec.vision.merge
    count, channels, height, width = frames.shape
    rows, columns = height // patch, width // patch
    cut = normalise(frames).view(
        count // temporal_patch, temporal_patch, channels,
        rows // merge, merge, patch,
        columns // merge, merge, patch,
    )  # fmt: skip
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (slice, row, column, in-row, in-column, c, t, y, x)
    return cut.reshape(count // temporal_patch, rows * columns, channels * temporal_patch * patch * patch)
