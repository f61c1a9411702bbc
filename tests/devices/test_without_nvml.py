"""GPUs without NVML are read by torch, which is imported only if a driver is installed."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.devices.scripted_nvml import GIB, machine, no_driver
from vidqa.devices.device import find_device, list_devices
from vidqa.devices.nvml import ASSUMED_CONTEXT_BYTES
from vidqa.errors import UsageError


def write(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def torch_without_nvml(available: bool = True) -> Any:
    """A torch that sees an Orin of 30 GiB, 20 GiB of them free."""
    properties = SimpleNamespace(name="Orin", major=8, minor=7)
    cuda = SimpleNamespace(
        is_available=lambda: available, device_count=lambda: 1, get_device_properties=lambda index: properties,
        mem_get_info=lambda index: (20 * GIB, 30 * GIB), memory_reserved=lambda index: 3 * GIB,
    )  # fmt: skip
    return SimpleNamespace(cuda=cuda)


@pytest.mark.parametrize("file", ["dev/nvhost-gpu", "dev/nvidia0", "proc/driver/nvidia/version"])
def test_without_nvml_torch_reports_gpus(tmp_path: Path, file: str) -> None:
    write(tmp_path, file)
    jetson = machine(no_driver(), root=tmp_path, torch=torch_without_nvml)
    for device in (find_device("auto", jetson), find_device("cuda", jetson), list_devices(jetson)[0]):
        assert (device.kind, device.name, device.compute_capability, device.bf16) == ("cuda", "Orin", (8, 7), True)
        assert (device.total_bytes, device.free_bytes) == (30 * GIB, 20 * GIB)
        assert device.process_bytes == 3 * GIB + ASSUMED_CONTEXT_BYTES
        assert device.other_bytes == 10 * GIB - device.process_bytes
        assert "NVML is missing" in device.notes[0]
    blind = machine(no_driver(), root=tmp_path, torch=lambda: torch_without_nvml(available=False))
    assert find_device("auto", blind).kind == "cpu"
    with pytest.raises(UsageError, match="No NVIDIA driver answers"):
        find_device("cuda", blind)


def test_without_nvml_and_without_a_drivers_files_torch_is_not_imported(tmp_path: Path) -> None:
    write(tmp_path, "dev/dxg")  # every WSL2 has it
    assert find_device("auto", machine(no_driver(), root=tmp_path)).kind == "cpu"
    write(tmp_path, "dev/nvidia0")
    processors_only = machine(no_driver(), root=tmp_path, torch_version=lambda: "2.15.0+cpu")
    assert find_device("auto", processors_only).kind == "cpu"
    with pytest.raises(AssertionError, match="torch was imported"):  # the scripted machine would notice
        find_device("auto", machine(no_driver(), root=tmp_path))


PLAN = "from vidqa.cli.main import run; run(['plan', 'assets/demo.mp4', '--model', 'demo'])"


@pytest.mark.parametrize("look", ["from vidqa.devices.device import *; list_devices()", PLAN])
def test_looking_imports_no_torch(look: str) -> None:
    code = f"{look}; import sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2], stdout=-3)
    assert done.returncode == 0
