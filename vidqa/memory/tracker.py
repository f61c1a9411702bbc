"""What memory a run really took: peaks of this process, by the host's and the device's own count.

Measures; plans nothing.
"""

import resource
import sys
from typing import Any


def host_peak_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


class DevicePeak:
    """Peak bytes that torch allocated on a CUDA device since this object was made."""

    def __init__(self, device: Any) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> int | None:
        """Peak bytes, or None on a device without a counter."""
        if self._device is None:
            return None
        import torch

        return int(torch.cuda.max_memory_allocated(self._device))
