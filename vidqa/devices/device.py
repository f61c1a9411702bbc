"""What is there now: which device to use, how much of it is free, and what torch's allocator is told.

Imports no torch where NVML answers (that takes seconds, and starts what must first be configured); where torch is
already loaded, its own word counts too. Knows nothing of models and plans.
"""

import re
from collections.abc import Callable
from contextlib import suppress

from vidqa.devices import nvml, torch_devices
from vidqa.devices.gpu_catalog import apple_working_set_bytes, rates_for
from vidqa.devices.host import THIS_MACHINE, Machine, cpu_device, host_memory, processor_name
from vidqa.errors import UsageError
from vidqa.types import Device
from vidqa.utils.units import format_bytes

_CPU_ONLY = "+cpu"  # the local version of a torch that was built without CUDA
_CHOICES = "Use auto, cpu, mps, cuda, or cuda:0 and so on."


def find_device(choice: str, machine: Machine = THIS_MACHINE) -> Device:
    """The device of `auto`, `cpu`, `mps`, `cuda` or `cuda:1`, as it is now.

    `cuda` is the GPU with most free memory among those that CUDA shows to this process; `auto` is
    that one, else Apple's GPU, else the processor. Raises UsageError for what is not there.
    """
    if choice == "cpu":
        return cpu_device(machine)
    if choice == "auto":
        return _automatic(machine)
    if choice == "mps":
        return _mps_device(machine)
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", choice)
    if match is None:
        raise UsageError(f"There is no device {choice!r}.", _CHOICES)
    devices = _usable_cuda(machine)
    if match.group(1) is None:
        return _roomiest(devices)
    if int(match.group(1)) >= len(devices):
        raise UsageError(f"There is no {choice}: CUDA shows {len(devices)} GPU(s), counted from 0.", _CHOICES)
    return devices[int(match.group(1))]


def reread(device: Device, machine: Machine = THIS_MACHINE) -> Device:
    """The same device as it is now; call it right before memory is taken."""
    return find_device(device.torch_name, machine)


def list_devices(machine: Machine = THIS_MACHINE) -> tuple[Device, ...]:
    """All devices of this machine, GPUs first; the processor is always the last."""
    apple = (_mps_device(machine),) if _is_apple(machine) else ()
    return (*_cuda_or_none(machine), *apple, cpu_device(machine))


def reusable_bytes(device: Device, machine: Machine = THIS_MACHINE) -> int:
    """Bytes that this process's allocator holds on a GPU without using them: 0 before CUDA has started.

    The driver counts them as taken, so `free_bytes` leaves them out. torch serves new tensors from
    them where a block is large enough, so they may be added to what a *small* allocation finds.
    """
    cuda = nvml.torch_cuda(machine) if device.kind == "cuda" else None
    return int(cuda.memory_reserved(device.index) - cuda.memory_allocated(device.index)) if cuda else 0


def _automatic(machine: Machine) -> Device:
    devices = _cuda_or_none(machine)
    if devices and not _lacks_cuda(machine):
        return _roomiest(devices)
    return _mps_device(machine) if _is_apple(machine) else cpu_device(machine)


def _roomiest(devices: tuple[Device, ...]) -> Device:
    return max(devices, key=lambda device: device.free_bytes)


def start_cuda(device: Device, start: Callable[[], None], machine: Machine = THIS_MACHINE) -> None:
    """Call `start`, which makes this process's context on a GPU, and remember what the context takes.

    Where the driver hides which bytes are this process's, the context would else count as another's, and be
    planned as well. On other devices, and where there is a context already, only `start` is called.
    """
    before: dict[str, int] = {}
    if device.kind == "cuda" and not nvml.has_context(machine, device.index):
        with suppress(UsageError):  # no NVML: there is nothing to compare
            before = nvml.free_by_uuid(machine)
    start()
    if before:
        nvml.remember_context(machine, device.index, before)


def _cuda_devices(machine: Machine) -> tuple[Device, ...]:
    """The GPUs by NVML, or by torch where NVML is missing and the driver's files are there."""
    try:
        return nvml.cuda_devices(machine)
    except UsageError:
        version = machine.torch_version()
        if not version or _lacks_cuda(machine) or not machine.has_nvidia_files():
            raise
        if not (devices := torch_devices.cuda_devices(machine)):
            raise
        return devices


def _cuda_or_none(machine: Machine) -> tuple[Device, ...]:
    try:
        return _cuda_devices(machine)
    except UsageError:
        return ()


def _usable_cuda(machine: Machine) -> tuple[Device, ...]:
    """The GPUs that CUDA shows, at least one; raises UsageError that says why there is none."""
    devices = _cuda_devices(machine)
    if not devices:
        raise UsageError(_why_none(machine), "Change CUDA_VISIBLE_DEVICES, or use --device cpu.")
    if _lacks_cuda(machine):
        raise UsageError(
            f"There is a GPU ({devices[0].name}), but torch {machine.torch_version()} is built without CUDA.",
            "Install the CUDA build of torch, or use --device cpu.",
        )
    return devices


def _why_none(machine: Machine) -> str:
    wanted = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return "The NVIDIA driver is there, but it shows no usable GPU."
    return f"CUDA_VISIBLE_DEVICES={wanted!r} hides every GPU."


def _lacks_cuda(machine: Machine) -> bool:
    return _CPU_ONLY in machine.torch_version()


def _is_apple(machine: Machine) -> bool:
    return machine.system == "darwin" and machine.architecture == "arm64"


def _mps_device(machine: Machine) -> Device:
    """Apple's GPU: its total is the share of RAM that Metal recommends, by torch's word where it is loaded."""
    if not _is_apple(machine):
        raise UsageError("There is no MPS device: it needs macOS on an Apple chip.", _CHOICES)
    host, name = host_memory(machine), processor_name(machine)
    total, own = _metal_memory(machine) or (apple_working_set_bytes(host.total_bytes), 0)
    free = max(min(total - own, host.free_bytes), 0)
    bandwidth, flops = rates_for(name, total, None)
    return Device(
        kind="mps",
        index=0,
        name=name,
        total_bytes=total,
        free_bytes=free,
        process_bytes=own,
        other_bytes=max(total - free - own, 0),
        compute_capability=None,
        bf16=False,
        bandwidth_bytes_per_second=bandwidth,
        flops_per_second=flops,
        notes=(f"unified memory: {format_bytes(total)} of {format_bytes(host.total_bytes)} are for the GPU",),
    )


def _metal_memory(machine: Machine) -> tuple[int, int] | None:
    """(recommended, taken by this process) in bytes by torch's word, where it is loaded with MPS."""
    torch = machine.modules.get("torch")
    backend = getattr(getattr(torch, "backends", None), "mps", None)
    if backend is None or not backend.is_available():
        return None
    mps = machine.modules["torch"].mps
    return int(mps.recommended_max_memory()), int(mps.driver_allocated_memory())
