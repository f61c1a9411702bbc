"""Patches compared bit by bit with qwen-vl-utils' resize and transformers' processor."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import Qwen2VLVideoProcessor

from tests.planner.plan_builders import SPEC_2B
from vidqa.models.families.qwen2_vl.runtime import resize_frame, to_patches


def random_frames(count: int, height: int, width: int) -> np.ndarray:
    """Frames (count, height, width, 3) with edges, ramps and noise."""
    rng = np.random.default_rng(height * width)
    ramp = np.linspace(0, 255, width)[None, None, :, None]
    mixed = ramp * 0.5 + rng.integers(0, 128, (count, height, width, 3))
    mixed[:, : height // 3] = 255
    return mixed.astype(np.uint8)


@pytest.mark.parametrize("target", [(84, 140), (56, 56), (112, 196), (280, 504)])
@pytest.mark.parametrize("source", [(120, 213), (84, 140), (37, 61), (720, 1280)])
def test_patches_are_bit_identical(source: tuple[int, int], target: tuple[int, int]) -> None:
    frames = random_frames(4, *source)
    # qwen-vl-utils 0.0.14, fetch_video: torchvision's antialiased bicubic on uint8 in, float out.
    batch = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = resize(batch, list(target), interpolation=InterpolationMode.BICUBIC, antialias=True).float()
    floats = torch.nn.functional.interpolate(batch.float(), target, mode="bicubic", antialias=True)
    rounded = floats.clamp(0, 255).round() if source != target else batch.float()
    ours = torch.stack([resize_frame(frame, *target) for frame in frames])
    assert torch.equal(ours.float(), rounded)
    assert (ours.float() - resized).abs().max() <= 1  # torchvision's uint8 path rounds by itself
    processor = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    expected = processor(videos=[rounded], return_tensors="pt", do_sample_frames=False)
    patches = to_patches(ours, SPEC_2B)
    assert torch.equal(patches.flatten(0, 1), expected["pixel_values_videos"])
    assert expected["video_grid_thw"].tolist() == [[2, target[0] // 14, target[1] // 14]]
