"""A scripted NVML module with the library's function names and errors."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from vidqa.devices.host import Machine

GIB = 2**30
MIB = 2**20
OWN = 4242


@dataclass
class Card:
    """One GPU or MIG instance. Processes are (pid, bytes or the driver's value for unknown)."""

    name: str = "NVIDIA GeForce RTX 3060"
    uuid: str = "GPU-aaaa"
    total: int = 12 * GIB
    reserved: int = 380 * MIB
    free: int = 11 * GIB
    capability: tuple[int, int] = (8, 6)
    computing: list[tuple[int, int | None]] | None = field(default_factory=list)
    drawing: list[tuple[int, int | None]] | None = field(default_factory=list)
    display: int | None = None
    reports_memory: bool = True
    instances: list["Card"] | None = None


class ScriptedNvml:
    """Stands for nvidia-ml-py's module."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, *cards: Card, second_version: bool = True) -> None:
        self.cards = cards
        self.second_version = second_version
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.86.15"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12080

    def nvmlDeviceGetCount(self) -> int:
        assert self.open >= 1  # NVML counts its starts
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:
        return card.capability

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.instances is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        if card.instances is None or index >= len(card.instances):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return card.instances[index]

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: object = None) -> SimpleNamespace:
        if not card.reports_memory:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if version is None:
            return SimpleNamespace(total=card.total, free=card.free, used=card.total - card.free)
        if not self.second_version:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        used = card.total - card.reserved - card.free
        return SimpleNamespace(total=card.total, reserved=card.reserved, free=card.free, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[SimpleNamespace]:
        return _processes(card.computing)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[SimpleNamespace]:
        return _processes(card.drawing)

    def nvmlDeviceGetDisplayActive(self, card: Card) -> int:
        if card.display is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card.display


def _processes(rows: list[tuple[int, int | None]] | None) -> list[SimpleNamespace]:
    if rows is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in rows]


def no_driver() -> Any:
    """Return a module whose library is missing."""

    class Missing(ScriptedNvml):
        def nvmlInit(self) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    return Missing()


def forbidden_torch() -> Any:
    """Fail: these functions must not import torch."""
    raise AssertionError("torch was imported")


def machine(
    nvml: Any,
    environment: Mapping[str, str] | None = None,
    modules: Mapping[str, Any] | None = None,
    root: Path = Path(os.devnull),
    system: str = "linux",
    torch_version: Callable[[], str] = lambda: "2.15.0",
    torch: Callable[[], Any] = forbidden_torch,
) -> Machine:
    """Return a machine with this driver, without files and without a loaded torch."""
    return Machine(
        environment=environment or {},
        modules=modules or {},
        nvml=lambda: nvml,
        root=root,
        system=system,
        architecture="arm64",
        process=lambda: OWN,
        torch_version=torch_version,
        torch=torch,
    )
