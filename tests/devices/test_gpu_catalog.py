"""The catalog of GPUs: names that people type, names that drivers report, and usable memory."""

import re

import pytest

from vidqa.devices.gpu_catalog import CATALOG, apple_working_set_bytes, as_device, find_gpu, rates_for
from vidqa.errors import UsageError

GIB = 2**30


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("t4", "t4"),
        ("Tesla T4", "t4"),
        ("RTX 4060", "rtx4060"),
        ("rtx-4060-ti-16", "rtx4060ti-16"),
        ("GeForce RTX 4060 Ti 8 GB", "rtx4060ti-8"),
        ("4090", "rtx4090"),
        ("5070 ti", "rtx5070ti"),
        ("A100 80GB", "a100-80"),
        ("a100-40", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("V100-PCIE-16GB", "v100-16"),
        ("h100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Jetson AGX Orin 64GB", "orin-64"),
        ("orin 8", "orin-8"),
        ("M-16", "m-16"),
        ("Apple M1 Max", "m-64"),
    ],
)
def test_names_as_people_type_them(typed: str, key: str) -> None:
    assert find_gpu(typed).key == key


@pytest.mark.parametrize(
    ("typed", "sizes"),
    [
        ("a100", "a100-40, a100-80"),
        ("RTX 3060", "rtx3060-8, rtx3060-12"),
        ("4060 Ti", "rtx4060ti-8, rtx4060ti-16"),
        ("orin", "orin-8, orin-16, orin-32, orin-64"),
        ("m2", "m-16, m-24"),
    ],
)
def test_a_name_of_several_sizes_is_refused_with_them(typed: str, sizes: str) -> None:
    with pytest.raises(UsageError) as refused:
        find_gpu(typed)
    assert refused.value.remedy == f"Name one of {sizes}."


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no GPU 'rtx4091'") as refused:
        find_gpu("rtx4091")
    assert "rtx4090" in refused.value.remedy
    with pytest.raises(UsageError, match="t4, l4, a10g"):
        find_gpu("")


def test_every_row_is_found_by_its_key_and_its_name() -> None:
    assert len({gpu.key for gpu in CATALOG}) == len(CATALOG)
    for gpu in CATALOG:
        assert find_gpu(gpu.key) is gpu
        assert find_gpu(gpu.name) is gpu


def test_rows_are_plausible() -> None:
    for gpu in CATALOG:
        device = as_device(gpu)
        assert device.free_bytes == device.total_bytes == gpu.memory_bytes
        marketing_gib = re.search(r"(\d+) GB$", gpu.name)
        if marketing_gib and gpu.compute_capability:  # the driver reserves a part
            assert 0.92 < gpu.memory_bytes / (int(marketing_gib[1]) * GIB) < 0.995
        assert 60e9 < gpu.bandwidth_bytes_per_second < 5e12
        assert 2e12 < gpu.flops_per_second < 1e15
        assert device.kind == ("cuda" if gpu.compute_capability else "mps")
        assert device.bf16 == (gpu.key not in {"t4", "v100-16", "v100-32"} and device.kind == "cuda")


@pytest.mark.parametrize(
    ("name", "gib", "capability", "key"),
    [
        ("NVIDIA GeForce RTX 3060", 11.6, (8, 6), "rtx3060-12"),
        ("NVIDIA GeForce RTX 3060", 7.7, (8, 6), "rtx3060-8"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 7.6, (8, 9), "rtx4060"),
        ("Tesla T4", 14.7, (7, 5), "t4"),
        ("NVIDIA A100 80GB PCIe", 79, (8, 0), "a100-80"),
        ("NVIDIA H100 PCIe", 79, (9, 0), "h100"),
        ("Orin", 15.3, (8, 7), "orin-16"),
        ("NVIDIA GeForce RTX 4080 SUPER", 15.6, (8, 9), "rtx4080"),  # extends a name
        ("NVIDIA L40", 44, (8, 9), "l40s"),  # does not extend `l4`: nearest of its generation
        ("NVIDIA A10", 22, (8, 6), "a10g"),
        ("NVIDIA B200", 178, (10, 0), "h200"),  # nothing of its generation: nearest of all
        ("Apple M3 Max", 96, None, "m-128"),
    ],
)
def test_rates_of_what_drivers_say(name: str, gib: float, capability: tuple[int, int] | None, key: str) -> None:
    row = find_gpu(key)
    rates = rates_for(name, round(gib * GIB), capability)
    assert rates == (row.bandwidth_bytes_per_second, row.flops_per_second)


def test_apples_share_is_what_metal_reports() -> None:
    for gib, mib in ((16, 10_922), (32, 21_845), (64, 49_152), (96, 73_728)):
        assert apple_working_set_bytes(gib * GIB) // 2**20 == mib
