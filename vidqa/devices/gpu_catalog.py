"""Catalog of GPUs for what-if plans, and peak rates of devices by name.

Memory is CUDA's total on Linux (with ECC where that is the default), 0.4 to 0.6 GiB below the marketing figure.
Bandwidth and dense 16-bit tensor throughput with 32-bit accumulation, without sparsity, are from NVIDIA's data sheets
and architecture papers (GA102, AD102, GB202: 128 FLOP per tensor core and clock on GeForce, twice that on data centre
cards of the same chip). A Jetson's GPU shares the CPU's memory; its throughput is half of the dense INT8 figure.
Apple's throughput is of 32-bit arithmetic: its GPUs have no faster 16-bit unit before the M5, and chips after the M2
have no published figure.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vidqa.errors import UsageError
from vidqa.types import Device

OLDEST_FOR_TRITON = (8, 0)  # compute capability; Triton 3.3 and newer
_GIB = 2**30
_GB_PER_SECOND = 1e9
_TERA = 1e12
# Metal's recommendedMaxWorkingSetSize as macOS reports it: 10,922 of 16,384 MiB, 21,845 of 32,768,
# 49,152 of 65,536, 73,728 of 98,304 (logs in llama.cpp's issues 1870 and 3213, ollama's issue 434).
_APPLE_SMALL_BYTES = 32 * _GIB


@dataclass(frozen=True, slots=True)
class Gpu:
    """One row of the catalog: usable memory and peak rates."""

    key: str
    name: str
    memory_bytes: int
    bandwidth_bytes_per_second: float
    flops_per_second: float
    compute_capability: tuple[int, int] | None

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 is native: NVIDIA since Ampere. Apple's GPUs run fp16."""
        return self.compute_capability is not None and self.compute_capability >= (8, 0)


def apple_working_set_bytes(memory_bytes: int) -> int:
    """Return the share of an Apple chip's memory that Metal recommends to use: 2/3 up to 32 GiB, 3/4 above.

    Newer macOS versions allow a little more; torch reports the exact figure.
    """
    return memory_bytes * 2 // 3 if memory_bytes <= _APPLE_SMALL_BYTES else memory_bytes * 3 // 4


def _nvidia(key: str, name: str, gib: float, bandwidth: float, tflops: float, capability: tuple[int, int]) -> Gpu:
    return Gpu(key, name, round(gib * _GIB), bandwidth * _GB_PER_SECOND, tflops * _TERA, capability)


def _apple(key: str, name: str, gib: int, bandwidth: float, tflops: float) -> Gpu:
    memory = apple_working_set_bytes(gib * _GIB)
    return Gpu(key, name, memory, bandwidth * _GB_PER_SECOND, tflops * _TERA, None)


# key, name, usable GiB, GB/s, TFLOP/s, compute capability
CATALOG: tuple[Gpu, ...] = (
    _nvidia("t4", "NVIDIA T4", 14.56, 320, 65, (7, 5)),
    _nvidia("l4", "NVIDIA L4", 22.03, 300, 121, (8, 9)),
    _nvidia("a10g", "NVIDIA A10G", 21.98, 600, 70, (8, 6)),
    _nvidia("rtx3060-8", "NVIDIA GeForce RTX 3060 8 GB", 7.66, 240, 25.5, (8, 6)),
    _nvidia("rtx3060-12", "NVIDIA GeForce RTX 3060 12 GB", 11.63, 360, 25.5, (8, 6)),
    _nvidia("rtx3080-10", "NVIDIA GeForce RTX 3080 10 GB", 9.63, 760, 59.5, (8, 6)),
    _nvidia("rtx3080-12", "NVIDIA GeForce RTX 3080 12 GB", 11.63, 912, 61.3, (8, 6)),
    _nvidia("rtx3090", "NVIDIA GeForce RTX 3090", 23.56, 936, 71, (8, 6)),
    _nvidia("rtx4060", "NVIDIA GeForce RTX 4060", 7.62, 272, 30.2, (8, 9)),
    _nvidia("rtx4060ti-8", "NVIDIA GeForce RTX 4060 Ti 8 GB", 7.62, 288, 44.1, (8, 9)),
    _nvidia("rtx4060ti-16", "NVIDIA GeForce RTX 4060 Ti 16 GB", 15.57, 288, 44.1, (8, 9)),
    _nvidia("rtx4070", "NVIDIA GeForce RTX 4070", 11.62, 504, 58.3, (8, 9)),
    _nvidia("rtx4080", "NVIDIA GeForce RTX 4080", 15.56, 716.8, 97.5, (8, 9)),
    _nvidia("rtx4090", "NVIDIA GeForce RTX 4090", 23.52, 1008, 165.2, (8, 9)),
    _nvidia("rtx5070", "NVIDIA GeForce RTX 5070", 11.49, 672, 61.7, (12, 0)),
    _nvidia("rtx5070ti", "NVIDIA GeForce RTX 5070 Ti", 15.46, 896, 87.9, (12, 0)),
    _nvidia("rtx5080", "NVIDIA GeForce RTX 5080", 15.46, 960, 112.6, (12, 0)),
    _nvidia("rtx5090", "NVIDIA GeForce RTX 5090", 31.36, 1792, 209.5, (12, 0)),
    _nvidia("v100-16", "NVIDIA V100 16 GB", 15.77, 900, 125, (7, 0)),
    _nvidia("v100-32", "NVIDIA V100 32 GB", 31.73, 900, 125, (7, 0)),
    _nvidia("a100-40", "NVIDIA A100 40 GB", 39.49, 1555, 312, (8, 0)),
    _nvidia("a100-80", "NVIDIA A100 80 GB", 79.15, 2039, 312, (8, 0)),
    _nvidia("l40s", "NVIDIA L40S", 44.39, 864, 362, (8, 9)),
    _nvidia("h100", "NVIDIA H100 80 GB", 79.11, 3350, 989, (9, 0)),
    _nvidia("h200", "NVIDIA H200", 139.80, 4800, 989, (9, 0)),
    _nvidia("orin-8", "NVIDIA Jetson Orin Nano 8 GB", 7.44, 102, 16.7, (8, 7)),
    _nvidia("orin-16", "NVIDIA Jetson Orin NX 16 GB", 15.3, 102.4, 15, (8, 7)),
    _nvidia("orin-32", "NVIDIA Jetson AGX Orin 32 GB", 29.9, 204.8, 27, (8, 7)),
    _nvidia("orin-64", "NVIDIA Jetson AGX Orin 64 GB", 61.3, 204.8, 42.5, (8, 7)),
    _apple("m-8", "Apple M1 8 GB", 8, 68.25, 2.6),
    _apple("m-16", "Apple M2 16 GB", 16, 100, 3.6),
    _apple("m-24", "Apple M2 24 GB", 24, 100, 3.6),
    _apple("m-36", "Apple M3 Pro 36 GB", 36, 150, 6.4),  # not published: 18 cores · 128 lanes · 2 · 1.4 GHz
    _apple("m-64", "Apple M1 Max 64 GB", 64, 400, 10.4),
    _apple("m-96", "Apple M2 Max 96 GB", 96, 400, 13.6),
    _apple("m-128", "Apple M1 Ultra 128 GB", 128, 800, 21),
)

_SIZE = re.compile(r"(?<=\d)\s*gi?b\b")
_NOISE = re.compile(r"nvidia|geforce|tesla|jetson|agx|apple|graphics|laptop|gpu|sxm\d?|pcie|nvl|hbm\d?e?|[^a-z0-9]")


def _squash(name: str) -> str:
    """Return a name without vendor, form factor, unit and punctuation: `NVIDIA A100-SXM4-80GB` is `a10080`."""
    return _NOISE.sub("", _SIZE.sub("", name.lower()))


def _families(gpu: Gpu) -> set[str]:
    """Return the squashed name and key without the memory size, which several rows can share."""
    return {_squash(re.sub(r" \d+ GB$", "", gpu.name)), _squash(re.sub(r"-\d+$", "", gpu.key))}


def find_gpu(name: str) -> Gpu:
    """Return the row that a user names: `t4`, `RTX 4060`, `A100 80GB`; case, spaces and dashes do not matter.

    Raises UsageError for a name that fits several rows (`a100`) or none.
    """
    wanted = _squash(name)
    wanted = f"rtx{wanted}" if wanted[:1] in tuple("345") else wanted
    for gpu in CATALOG:
        if wanted in {_squash(gpu.key), _squash(gpu.name)}:
            return gpu
    family = [gpu for gpu in CATALOG if wanted in _families(gpu)]
    if len(family) == 1:
        return family[0]
    if family:
        raise UsageError(f"{name!r} is sold in several sizes.", f"Name one of {_keys(family)}.")
    near = difflib.get_close_matches(wanted, {_squash(gpu.key): gpu for gpu in CATALOG}, n=4, cutoff=0.5)
    nearest = [gpu for gpu in CATALOG if _squash(gpu.key) in near] or CATALOG
    raise UsageError(f"There is no GPU {name!r} in the catalog.", f"Did you mean {_keys(nearest)}?")


def _keys(gpus: Iterable[Gpu]) -> str:
    return ", ".join(gpu.key for gpu in gpus)


def as_device(gpu: Gpu) -> Device:
    """Return the GPU as a device with all memory free."""
    return Device(
        kind="cuda" if gpu.compute_capability else "mps",
        index=0,
        name=gpu.name,
        total_bytes=gpu.memory_bytes,
        free_bytes=gpu.memory_bytes,
        process_bytes=0,
        other_bytes=0,
        compute_capability=gpu.compute_capability,
        bf16=gpu.bf16,
        bandwidth_bytes_per_second=gpu.bandwidth_bytes_per_second,
        flops_per_second=gpu.flops_per_second,
    )


def rates_for(name: str, memory_bytes: int, compute_capability: tuple[int, int] | None) -> tuple[float, float]:
    """Return bandwidth (bytes/s) and 16-bit throughput (FLOP/s) of the device that a driver calls `name`.

    A name in the catalog gives its row, of several sizes the nearest in memory; a longer name (`RTX 4080 SUPER`) the
    row of the name it extends. Any other name gives the row nearest in memory of the same generation, else of the same
    maker (Apple: capability None), of equals the slower. That is rough, but enough to rank plans.
    """
    makers = [gpu for gpu in CATALOG if bool(gpu.compute_capability) == bool(compute_capability)]
    kin = [gpu for gpu in makers if _generation(gpu.compute_capability) == _generation(compute_capability)]
    rows = _namesakes(_squash(name)) or kin or makers
    best = min(rows, key=lambda gpu: (round(abs(gpu.memory_bytes - memory_bytes) / _GIB), gpu.flops_per_second))
    return best.bandwidth_bytes_per_second, best.flops_per_second


def _generation(compute_capability: tuple[int, int] | None) -> int | None:
    return compute_capability[0] if compute_capability else None


def _namesakes(squashed: str) -> list[Gpu]:
    """Return the rows of the longest family that the name is or extends by letters: `l40` does not extend `l4`."""
    exact = [gpu for gpu in CATALOG if squashed == _squash(gpu.name)]
    families = {family for gpu in CATALOG for family in _families(gpu)}
    extended = [f for f in families if squashed.startswith(f) and not squashed[len(f) :][:1].isdigit()]
    longest = max(extended, key=len, default="")
    return exact or [gpu for gpu in CATALOG if longest in _families(gpu)]
