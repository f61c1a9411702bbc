"""Look-up of devices and their free memory, and the environment that torch's allocator and compiler read at start.

Devices are read without importing torch (which takes seconds, and reads its environment) except where NVML is missing.
Where torch is loaded already, its figures count too.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from vidqa.config import compiled_folder
from vidqa.devices import nvml
from vidqa.devices.gpu_catalog import apple_working_set_bytes, rates_for
from vidqa.devices.host import THIS_MACHINE, Machine, cpu_device, host_memory, processor_name
from vidqa.errors import UsageError
from vidqa.types import Device
from vidqa.utils.units import format_bytes

_CPU_ONLY = "+cpu"  # the local version of a torch that was built without CUDA
_CHOICES = "Use auto, cpu, mps, cuda, or cuda:0 and so on."
_NO_NVML_NOTE = "NVML is missing: memory is as torch reports it; the processes that hold it are unknown"
# c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize: every tensor is rounded up to this many bytes.
BLOCK = 512


def rounded(count: int) -> int:
    """Return the bytes that the allocator takes for `count` bytes."""
    return -(-count // BLOCK) * BLOCK


def find_device(choice: str, machine: Machine = THIS_MACHINE) -> Device:
    """Return the device that `auto`, `cpu`, `mps`, `cuda` or `cuda:1` names, with its memory of this moment.

    `cuda` is the GPU with most free memory among those that CUDA shows to this process; `auto` is that GPU, else
    Apple's GPU, else the CPU. Raises UsageError if there is no such device.
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
        return _freest(devices)
    if int(match.group(1)) >= len(devices):
        raise UsageError(f"There is no {choice}: CUDA shows {len(devices)} GPU(s), counted from 0.", _CHOICES)
    return devices[int(match.group(1))]


def reread(device: Device, machine: Machine = THIS_MACHINE) -> Device:
    """Return the same device with its memory of this moment; call it right before allocating."""
    return find_device(device.torch_name, machine)


def list_devices(machine: Machine = THIS_MACHINE) -> tuple[Device, ...]:
    """Return all devices of this machine, GPUs first and the CPU last."""
    apple = (_mps_device(machine),) if _is_apple(machine) else ()
    return (*_cuda_or_none(machine), *apple, cpu_device(machine))


def reusable_bytes(device: Device, machine: Machine = THIS_MACHINE) -> int:
    """Return the bytes that torch's allocator holds on a GPU without using them; 0 before CUDA has started.

    The driver counts them as used, so `free_bytes` does not include them. torch reuses them for new tensors where a
    block is large enough, so they count as free for *small* allocations.
    """
    cuda = nvml.torch_cuda(machine) if device.kind == "cuda" else None
    return int(cuda.memory_reserved(device.index) - cuda.memory_allocated(device.index)) if cuda else 0


def allocator_environment(environment: Mapping[str, str], machine: Machine = THIS_MACHINE) -> dict[str, str]:
    """Return variables to set before torch starts, so that its CUDA allocator uses expandable segments.

    Fixed segments leave holes that no plan foresees (torchtune issue 1185: 16.4 -> 10.8 GiB reserved). The user's
    options stay, also one for expandable_segments; PYTORCH_ALLOC_CONF wins over its older name, and both are set alike
    where the older one is set. Returns nothing where expandable segments fail and the user has set no option.
    """
    newer, older = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    options = _allocator_options(environment.get(older, "")) | _allocator_options(environment.get(newer, ""))
    if options.get("backend") != "cudaMallocAsync" and _maps_memory(machine):  # has no segments
        options.setdefault("expandable_segments", "True")
    merged = ",".join(f"{name}:{value}" for name, value in options.items())
    if not merged:
        return {}
    return {newer: merged} | ({older: merged} if older in environment else {})


def compiler_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables to set before torch and Triton start: their caches of kernels go to the user's cache folder."""
    folder = compiled_folder(environment)
    wanted = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    return {name: path for name, path in wanted.items() if name not in environment}


def _automatic(machine: Machine) -> Device:
    devices = _cuda_or_none(machine)
    if devices and not _lacks_cuda(machine):
        return _freest(devices)
    return _mps_device(machine) if _is_apple(machine) else cpu_device(machine)


def _freest(devices: tuple[Device, ...]) -> Device:
    return max(devices, key=lambda device: device.free_bytes)


def start_cuda(device: Device, start: Callable[[], None], machine: Machine = THIS_MACHINE) -> None:
    """Call `start`, which creates this process's CUDA context, and remember the size of the context.

    Where the driver hides which bytes are this process's, the context would otherwise count as another process's, and
    be planned again. On other devices, and where a context exists, only call `start`.
    """
    before: dict[str, int] = {}
    if device.kind == "cuda" and not nvml.has_context(machine, device.index):
        with suppress(UsageError):  # no NVML
            before = nvml.free_by_uuid(machine)
    start()
    if before:
        nvml.remember_context(machine, device.index, before)


def _cuda_devices(machine: Machine) -> tuple[Device, ...]:
    """Return the GPUs by NVML, or by torch where NVML is missing but a driver is installed."""
    try:
        return nvml.cuda_devices(machine)
    except UsageError:
        if not machine.has_nvidia_files() or not machine.torch_version() or _lacks_cuda(machine):
            raise
        if not (devices := _torch_cuda_devices(machine)):
            raise
        return devices


def _torch_cuda_devices(machine: Machine) -> tuple[Device, ...]:
    """Return the GPUs as torch reports them, in CUDA's order; none if torch or CUDA cannot start.

    For machines without NVML: older Jetsons, and drivers without it. Starts CUDA on every GPU.
    """
    try:
        cuda = machine.torch().cuda
        count = cuda.device_count() if cuda.is_available() else 0
        return tuple(_torch_cuda_device(cuda, index) for index in range(count))
    except (ImportError, OSError, RuntimeError):  # a broken build, or a driver that is too old
        return ()


def _torch_cuda_device(cuda: Any, index: int) -> Device:
    properties = cuda.get_device_properties(index)
    free, total = cuda.mem_get_info(index)  # creates this process's context
    own = min(int(cuda.memory_reserved(index)) + nvml.ASSUMED_CONTEXT_BYTES, total - free)
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
        notes=(_NO_NVML_NOTE,),
    )


def _cuda_or_none(machine: Machine) -> tuple[Device, ...]:
    try:
        return _cuda_devices(machine)
    except UsageError:
        return ()


def _usable_cuda(machine: Machine) -> tuple[Device, ...]:
    """Return the GPUs that CUDA shows; raises UsageError with the reason if there is none."""
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
        return "The NVIDIA driver shows no usable GPU."
    return f"CUDA_VISIBLE_DEVICES={wanted!r} hides every GPU."


def _lacks_cuda(machine: Machine) -> bool:
    return _CPU_ONLY in machine.torch_version()


def _is_apple(machine: Machine) -> bool:
    return machine.system == "darwin" and machine.architecture == "arm64"


def _mps_device(machine: Machine) -> Device:
    """Return Apple's GPU. Its total is the share of RAM that Metal recommends, as torch reports it where loaded."""
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
    """Return (recommended, held by this process) in bytes where torch is loaded with MPS."""
    torch = machine.modules.get("torch")
    backend = getattr(getattr(torch, "backends", None), "mps", None)
    if backend is None or not backend.is_available():
        return None
    mps = machine.modules["torch"].mps
    return int(mps.recommended_max_memory()), int(mps.driver_allocated_memory())


def _maps_memory(machine: Machine) -> bool:
    """Return whether expandable segments work: not under WSL2 (cuMemSetAccess fails with 999 at the first allocation,
    pytorch issue 192330), on Windows (torch builds without them warn) and on Jetson (cuMemCreate fails).
    """
    return machine.system != "win32" and not machine.is_wsl() and not machine.is_tegra()


def _allocator_options(text: str) -> dict[str, str]:
    """Parse `a:1,b:[256:1,512:2]` by name; commas inside brackets belong to the value."""
    pairs = (option.partition(":") for option in re.split(r",(?![^\[]*\])", text) if option.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}
