"""Attention over a preallocated KV cache: the ladder of kernels that can do it.

No kernel here expands K or V to all heads, and none allocates a matrix of the prompt's
length squared.
"""

import torch

from vidqa.config import ATTENTION_CHOICES
from vidqa.errors import UsageError
from vidqa.models.attention.base import Kernel, fold
from vidqa.models.attention.flex import FlexKernel
from vidqa.models.attention.sdpa import FusedKernel
from vidqa.models.attention.tiled import TiledKernel

__all__ = ["FlexKernel", "FusedKernel", "Kernel", "TiledKernel", "fold", "make_kernel"]


def make_kernel(name: str, device: torch.device) -> Kernel:
    """The rung of the ladder that a plan names.

    Raises UsageError for other names, AttentionUnavailable where the device does not have it.
    """
    if name == "auto" or name not in ATTENTION_CHOICES:
        rungs = ", ".join(choice for choice in ATTENTION_CHOICES if choice != "auto")
        raise UsageError(f"There is no attention kernel {name!r}.", f"Choose one of {rungs}.")
    if name == "flex":
        return FlexKernel()
    return TiledKernel() if name == "tiled" else FusedKernel(name, device)
