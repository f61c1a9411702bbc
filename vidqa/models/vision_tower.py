"""From frames to embeddings: steps that the vision towers of model families share.

Frames are resized, normalised and cut bit-identically with the reference: qwen-vl-utils' resize (float bicubic with
antialias, clamp, round), then transformers' video processor of the family with do_resize=False. Resizing runs on the
host, with the reference's own bicubic kernel; the rest is exact elementwise arithmetic on the device of the pixels.

Blocks run the checkpoint's own modules. Patches of a slice are in merge order: the merge² patches of a token next to
each other. Attention does not cross slices, so that all slices of a group are one batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention

from vidqa.devices.torch_device import to_device
from vidqa.models.block_sizes import VISION_MLP_ROWS
from vidqa.models.decoder_layers import rotate
from vidqa.models.family_config import VISION_THETA
from vidqa.models.spec import ModelSpec

if TYPE_CHECKING:
    import numpy


def resize_frame(rgb: "numpy.ndarray", height: int, width: int) -> Tensor:
    """Resize one picture (h, w, 3) uint8 to (3, height, width) uint8."""
    image = torch.from_numpy(rgb).permute(2, 0, 1)  # (3, h, w)
    if image.shape[1:] == (height, width):
        return image.contiguous()
    resized = interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True)[0]
    return resized.clamp_(0, 255).round_().to(torch.uint8)


def normalise(frames: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Map (n, 3, height, width) uint8 to float32 with the statistics of the channels, fused as transformers does."""
    means, deviations = _statistics(mean, deviation, frames.device)
    return frames.to(torch.float32).sub_(means).div_(deviations)


def _statistics(mean: Sequence[float], deviation: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return means and deviations (3, 1, 1) on a device."""
    scale = 1.0 / (1 / 255)  # rounds as transformers' fused rescale factor does
    both = torch.tensor((mean, deviation)).mul_(scale)[:, :, None, None]
    means, deviations = to_device(both, device)
    return means, deviations


def cut_patches(frames: Tensor, spec: ModelSpec, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Cut (n, 3, height, width) uint8 frames into the vision tower's rows.

    n is a multiple of `temporal_patch`. Return (slices, patches, 3·temporal_patch·patch²) float32, with the `merge`²
    patches of a token next to each other.
    """
    patch, temporal_patch, merge = spec.vision.patch, spec.vision.temporal_patch, spec.vision.merge
    count, channels, height, width = frames.shape
    rows, columns = height // patch, width // patch
    cut = normalise(frames, mean, deviation).view(
        count // temporal_patch, temporal_patch, channels,
        rows // merge, merge, patch,
        columns // merge, merge, patch,
    )  # fmt: skip
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (slice, row, column, in-row, in-column, c, t, y, x)
    return cut.reshape(count // temporal_patch, rows * columns, channels * temporal_patch * patch * patch)


def embed_patches(projection: Any, patches: Tensor) -> Tensor:
    """Embed patches (slices, patches, values) by a convolution whose stride is its kernel: a matrix product."""
    return linear(patches, projection.weight.flatten(1), projection.bias)


def merge_order(rows: int, columns: int, merge: int, device: torch.device) -> Tensor:
    """Return the indices (patches,) of a slice's patches, counted row by row, in merge order."""
    grid = torch.arange(rows * columns, device=device).view(rows // merge, merge, columns // merge, merge)
    return grid.permute(0, 2, 1, 3).reshape(-1)


def axial_rotary(rows: int, columns: int, head_dim: int, merge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (patches, head_dim / 2) of the 2-D rotary embedding of one slice.

    Half of the frequencies rotate with the row, half with the column (Qwen2-VL, section 2.1).
    """
    order = merge_order(rows, columns, merge, device)
    frequencies = VISION_THETA ** -(torch.arange(0, head_dim // 2, 2, device=device).float() / (head_dim // 2))
    coordinates = torch.stack((order // columns, order % columns), dim=1).float()  # (patches, 2)
    angles = (coordinates[:, :, None] * frequencies).reshape(len(order), -1)
    return angles.cos(), angles.sin()


def attend_within_slices(block: Any, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Run the attention of one block over (slices, patches, width), within each slice."""
    slices, count, width = hidden.shape
    attention = block.attn
    qkv = attention.qkv(block.norm1(hidden)).view(slices, count, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (slices, heads, patches, head_dim)
    mixed = scaled_dot_product_attention(rotate(query, cosine, sine), rotate(key, cosine, sine), value)
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(slices, count, width))
    return out


def mlp_by_tiles(block: Any, rows: Tensor) -> Tensor:
    """Run a block's MLP with its residual over (rows, width), a tile of rows at a time to save memory."""
    tiles = [tile + block.mlp(block.norm2(tile)) for tile in torch.split(rows, VISION_MLP_ROWS)]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)
