"""Host memory with control group limits, the CPU as a device, and where facts about the machine are read from."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from vidqa.errors import UsageError
from vidqa.types import Device

# Two channels of DDR4-3200 give 51 GB/s, a share of a server less. An order of magnitude, for time estimates.
_BANDWIDTH_BYTES_PER_SECOND = 40e9
# AVX2: 2 units · 8 lanes of fp32 · multiply and add.
_FLOPS_PER_CORE_AND_CYCLE = 32
_USUAL_HERTZ = 2.5e9
# The driver's files on a PC, on Jetson (older and newer kernels), and under WSL (/dev/dxg is there without NVIDIA too).
_NVIDIA_FILES = (
    "dev/nvidia0", "proc/driver/nvidia/version",
    "dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/nvgpu", "dev/nvmap",
    "usr/lib/wsl/lib/libcuda.so.1",
)  # fmt: skip
_GROUPS = "sys/fs/cgroup"
_UNLIMITED_BYTES = 2**60  # version 1 writes "no limit" as the largest page-aligned number


def _installed_torch() -> str:
    """Return the installed version of torch from its metadata; importing torch takes seconds."""
    from importlib.metadata import PackageNotFoundError, version  # imported late: 40 ms

    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _architecture() -> str:
    """Return the processor's architecture: `x86_64`, `arm64`."""
    return os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")


def _import_nvml() -> Any:
    """Import nvidia-ml-py; raise UsageError where no driver's file exists, which takes no time to see."""
    if sys.platform == "linux" and not THIS_MACHINE.has_nvidia_files():
        raise UsageError("There is no NVIDIA driver here.", "Install NVIDIA's driver, or use --device cpu.")
    return import_module("pynvml")  # it has no types


@dataclass(frozen=True, slots=True)
class Machine:
    """Sources of facts: this machine by default, a scripted one in tests.

    `nvml` imports nvidia-ml-py; `modules` are the loaded modules; `torch` imports torch, for GPUs without NVML only;
    `root` is the folder of /proc, /sys and /dev; `context_bytes` are measured sizes of CUDA contexts by (process, GPU).
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    modules: Mapping[str, Any] = field(default_factory=lambda: sys.modules)
    nvml: Callable[[], Any] = _import_nvml
    root: Path = Path("/")
    system: str = sys.platform
    architecture: str = field(default_factory=_architecture)
    process: Callable[[], int] = os.getpid  # a function: a forked child is another process
    torch_version: Callable[[], str] = _installed_torch
    torch: Callable[[], Any] = lambda: import_module("torch")
    context_bytes: dict[tuple[int, int], int] = field(default_factory=dict, compare=False)

    def read(self, path: str) -> str:
        """Return the text of a file below `root`, empty if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def has_nvidia_files(self) -> bool:
        """Return whether files of an NVIDIA driver exist: there may be a GPU even if NVML is missing."""
        return any((self.root / path).exists() for path in _NVIDIA_FILES)

    def is_wsl(self) -> bool:
        """Return whether this is Linux under Windows, with Windows' GPU driver."""
        return "microsoft" in self.read("proc/sys/kernel/osrelease").lower()

    def is_tegra(self) -> bool:
        """Return whether this is a Jetson or another NVIDIA board whose CPU and GPU share memory."""
        return "nvidia,tegra" in self.read("proc/device-tree/compatible") or bool(self.read("etc/nv_tegra_release"))


THIS_MACHINE = Machine()


@dataclass(frozen=True, slots=True)
class HostMemory:
    """RAM in bytes: the smaller of the machine's and the control group's."""

    total_bytes: int
    free_bytes: int
    process_bytes: int
    limited: bool


def host_memory(machine: Machine) -> HostMemory:
    """Return RAM as it is now, with a container's limit where that is lower.

    Linux counts file pages as available that this process has mapped and that are in its resident size. They are
    subtracted, since torch's libraries would count as 360 MiB both free and held.
    """
    memory, process = psutil.virtual_memory(), psutil.Process().memory_info()
    groups = list(_control_groups(machine))
    total = min([memory.total, *(limit for limit, _ in groups)])
    free = min([memory.available - getattr(process, "shared", 0), *(free for _, free in groups)])
    return HostMemory(total, max(free, 0), process.rss, limited=total < memory.total)


def free_host_bytes() -> int:
    """Return the RAM that this process can still take on this machine."""
    return host_memory(Machine()).free_bytes


def _control_groups(machine: Machine) -> Iterator[tuple[int, int]]:
    """Yield (limit, free) in bytes of every limited control group of this process, up to the root.

    Free is limit - usage + inactive file cache, which the kernel reclaims first. Inside a container the path in /proc
    is the host's, so missing folders are skipped.
    """
    for mount, path in _group_paths(machine, "memory"):
        if mount == _GROUPS:
            yield from _limits(machine, mount, path, "memory.max", "memory.current", "inactive_file")
        else:
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(machine, mount, path, *files)


def _group_paths(machine: Machine, controller: str) -> Iterator[tuple[str, str]]:
    """Yield (mount, path) of this process's control groups that may have a controller, of version 2 and 1."""
    for line in machine.read("proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            yield _GROUPS, path
        elif controller in controllers.split(","):
            yield f"{_GROUPS}/{controller}", path


def _upwards(mount: str, path: str) -> Iterator[str]:
    """Yield a control group's folder and those above it, up to the mount."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for depth in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:depth]])


def _limits(
    machine: Machine, mount: str, path: str, limit_file: str, usage_file: str, reclaimable: str
) -> Iterator[tuple[int, int]]:
    for folder in _upwards(mount, path):
        limit, usage = (machine.read(f"{folder}/{name}").strip() for name in (limit_file, usage_file))
        if not limit.isdecimal() or not usage.isdecimal() or int(limit) >= _UNLIMITED_BYTES:
            continue
        match = re.search(rf"^{reclaimable} (\d+)$", machine.read(f"{folder}/memory.stat"), re.MULTILINE)
        yield int(limit), int(limit) - int(usage) + (int(match.group(1)) if match else 0)


def cpu_device(machine: Machine) -> Device:
    """Return the CPU and RAM as a device. Rates are rough: 40 GB/s, 32 fp32 FLOP per core and cycle."""
    memory = host_memory(machine)
    note = f"a control group limits this process to {memory.total_bytes / 2**30:.1f} GiB"
    return Device(
        kind="cpu",
        index=0,
        name=processor_name(machine),
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        process_bytes=memory.process_bytes,
        other_bytes=max(memory.total_bytes - memory.free_bytes - memory.process_bytes, 0),
        compute_capability=None,
        bf16=_multiplies_bf16(machine.root),
        bandwidth_bytes_per_second=_BANDWIDTH_BYTES_PER_SECOND,
        flops_per_second=usable_cores() * _hertz() * _FLOPS_PER_CORE_AND_CYCLE,
        notes=(note,) if memory.limited else (),
    )


@functools.cache
def _multiplies_bf16(root: Path) -> bool:
    """Return whether the processor has instructions that multiply bf16, by the flags that Linux lists.

    x86: avx512_bf16 or amx_bf16; ARM: bf16. Without them bf16 products of many rows take twice as long as float32's.
    """
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", Machine(root=root).read("proc/cpuinfo"), re.MULTILINE)
    return match is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(match.group(1).split())


def processor_name(machine: Machine) -> str:
    """Return the CPU's name by Linux or macOS, else the architecture."""
    if machine.system == "darwin":
        return _apple_name() or machine.architecture
    match = re.search(r"^model name\s*:\s*(.+)$", machine.read("proc/cpuinfo"), re.MULTILINE)
    return match.group(1).strip() if match else machine.architecture


def _apple_name() -> str:
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def usable_cores(machine: Machine = THIS_MACHINE) -> int:
    """Return the number of physical cores, at most those that this process may run on.

    Limits are the affinity mask, a control group's quota, and OMP_NUM_THREADS. torch knows no quota: in a container of
    2 of 64 cores it starts 64 threads that wait for each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or 1, allowed, *_cpu_quotas(machine))
    threads = machine.environment.get("OMP_NUM_THREADS", "")
    return max(min(cores, int(threads)) if threads.isdecimal() and int(threads) else cores, 1)


def _cpu_quotas(machine: Machine) -> Iterator[int]:
    """Yield the processor time of every limited control group of this process, in whole cores."""
    for mount, path in _group_paths(machine, "cpu"):
        for folder in _upwards(mount, path):
            quota, period = [*machine.read(f"{folder}/cpu.max").split(), "", ""][:2]  # version 2
            if not quota:
                quota, period = (machine.read(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
            if quota.isdecimal() and period.isdecimal() and int(period):
                yield int(quota) // int(period)


def _hertz() -> float:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):  # hidden by virtual machines and some ARM kernels
        return _USUAL_HERTZ
    return float(frequency.max or frequency.current) * 1e6 if frequency else _USUAL_HERTZ
