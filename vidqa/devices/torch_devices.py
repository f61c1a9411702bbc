"""NVIDIA GPUs as torch describes them, for machines without NVML: older Jetsons, and drivers without it.

Imports torch and starts CUDA on every GPU, so it is asked only where NVML is missing and there may be a GPU.
"""

from typing import Any

from vidqa.devices.gpu_catalog import rates_for
from vidqa.devices.host import Machine
from vidqa.devices.nvml import ASSUMED_CONTEXT_BYTES
from vidqa.types import Device

_NOTE = "NVML is missing: memory is as torch tells it, and which processes hold it is not known"


def cuda_devices(machine: Machine) -> tuple[Device, ...]:
    """The GPUs that torch can use, in CUDA's order; none where it cannot be imported or started."""
    try:
        cuda = machine.torch().cuda
        count = cuda.device_count() if cuda.is_available() else 0
        return tuple(_device(cuda, index) for index in range(count))
    except (ImportError, OSError, RuntimeError):  # a broken build, or a driver that is too old
        return ()


def _device(cuda: Any, index: int) -> Device:
    """One GPU as it is now; asking for its memory has made this process's context there."""
    properties = cuda.get_device_properties(index)
    free, total = cuda.mem_get_info(index)
    own = min(int(cuda.memory_reserved(index)) + ASSUMED_CONTEXT_BYTES, total - free)
    capability = (int(properties.major), int(properties.minor))
    bandwidth, flops = rates_for(properties.name, total, capability)
    return Device(
        kind="cuda",
        index=index,
        name=str(properties.name),
        total_bytes=int(total),
        free_bytes=int(free),
        process_bytes=own,
        other_bytes=int(total) - int(free) - own,
        compute_capability=capability,
        bf16=capability >= (8, 0),
        bandwidth_bytes_per_second=bandwidth,
        flops_per_second=flops,
        notes=(_NOTE,),
    )
