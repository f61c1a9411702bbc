"""torch's caching allocator: its rounding, and the environment that it and torch's compiler read at their start."""

import re
from collections.abc import Mapping

from vidqa.config import compiled_folder
from vidqa.devices.host import THIS_MACHINE, Machine

# c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize: every tensor is rounded up to this many bytes.
BLOCK = 512


def rounded(count: int) -> int:
    """Bytes that an allocation of `count` bytes takes."""
    return -(-count // BLOCK) * BLOCK


def allocator_environment(environment: Mapping[str, str], machine: Machine = THIS_MACHINE) -> dict[str, str]:
    """What to set before torch starts, so that its CUDA allocator grows segments instead of adding new ones.

    Fixed segments leave holes that no plan foresees (torchtune issue 1185: 16.4 -> 10.8 GiB reserved).
    The user's options are kept, a setting of expandable_segments most of all; PYTORCH_ALLOC_CONF wins
    over its older name. That one is set too where it was, so that both say the same whichever is read.
    Nothing is set where growing segments are known to fail and the user has set nothing.
    """
    newer, older = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    options = _allocator_options(environment.get(older, "")) | _allocator_options(environment.get(newer, ""))
    if options.get("backend") != "cudaMallocAsync" and _maps_memory(machine):  # the driver's own has no segments
        options.setdefault("expandable_segments", "True")
    merged = ",".join(f"{name}:{value}" for name, value in options.items())
    if not merged:
        return {}
    return {newer: merged} | ({older: merged} if older in environment else {})


def _maps_memory(machine: Machine) -> bool:
    """Whether a growing segment can be mapped: not under WSL2 (cuMemSetAccess fails with 999 at the first allocation,
    pytorch issue 192330), on Windows (torch builds without them warn) and on Jetson (cuMemCreate fails).
    """
    return machine.system != "win32" and not machine.is_wsl() and not machine.is_tegra()


def compiler_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Where torch and Triton keep compiled kernels, set before they start: the user's cache folder by default."""
    folder = compiled_folder(environment)
    wanted = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    return {name: path for name, path in wanted.items() if name not in environment}


def _allocator_options(text: str) -> dict[str, str]:
    """`a:1,b:[256:1,512:2]` by name; commas inside brackets belong to the value."""
    pairs = (option.partition(":") for option in re.split(r",(?![^\[]*\])", text) if option.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}
