"""NVIDIA GPUs and their memory by NVML, in CUDA's numbering.

Why not `torch.cuda`: importing torch takes seconds (`vidqa plan` has 0.4 s), `mem_get_info` creates a context of some
400 MiB on each GPU, and it does not say which processes hold memory. NVML numbers GPUs otherwise than CUDA and ignores
CUDA_VISIBLE_DEVICES and MIG, so the numbering is done here; without it a plan could be made for another GPU's memory.
Where torch has started CUDA, its numbering and free memory count too. Each NVML call may be unsupported (MIG,
containers, WSL, Jetson); memory that NVML does not report is never counted as free.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vidqa.devices.gpu_catalog import rates_for
from vidqa.devices.host import Machine, host_memory
from vidqa.errors import UsageError
from vidqa.types import Device
from vidqa.utils.units import format_bytes

# Of a CUDA context with its kernels, until the context was measured.
ASSUMED_CONTEXT_BYTES = 480 * 2**20
_MAX_CONTEXT_BYTES = 2**31  # a larger fall of free memory is another process's
_UNKNOWN_BYTES = 2**63  # NVML's "not available" is the largest 64-bit number
_WSL_NOTE = "WSL2: allocations beyond the GPU's memory go to host memory, slowly, instead of failing"
_ORDER_NOTE = "CUDA may number these different GPUs in another order; set CUDA_DEVICE_ORDER=PCI_BUS_ID to fix it"


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, or one MIG instance; `whole` is the handle of the GPU that a MIG instance belongs to."""

    handle: Any
    uuid: str
    name: str
    capability: tuple[int, int] | None
    whole: Any = None


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver's version and the newest CUDA version it supports."""

    version: str
    cuda: str


def _opened(machine: Machine) -> Any:
    """Return NVML, initialised; raises UsageError if there is no driver.

    It is never shut down: the first start takes tens of milliseconds, and memory is read many times a second.
    """
    try:
        nvml = machine.nvml()
    except ImportError as error:
        raise UsageError("nvidia-ml-py is missing, so no NVIDIA GPU can be seen.", "Install vidqa again.") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise UsageError(
            f"No NVIDIA driver answers: {error}.", "Install or restart NVIDIA's driver, or use --device cpu."
        ) from error
    return nvml


def _call(nvml: Any, function: str, *arguments: Any) -> Any:
    """Call an NVML function; return None if this GPU, driver or container does not support it."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def driver(machine: Machine) -> Driver:
    """Return the driver's versions; raises UsageError if there is no driver."""
    nvml = _opened(machine)
    number = _call(nvml, "nvmlSystemGetCudaDriverVersion_v2") or 0
    cuda = f"{number // 1000}.{number % 1000 // 10}" if number else "unknown"
    return Driver(str(_call(nvml, "nvmlSystemGetDriverVersion") or "unknown"), cuda)


def cuda_devices(machine: Machine) -> tuple[Device, ...]:
    """Return the GPUs that CUDA shows to this process, in its order; raises UsageError if there is no driver."""
    nvml = _opened(machine)
    groups = list(_groups(nvml))
    cards, sure = _ordered(nvml, machine, groups)
    return tuple(_device(nvml, machine, index, card, sure) for index, card in enumerate(cards))


def cuda_uuids(machine: Machine) -> tuple[str, ...]:
    """Return the UUIDs of the GPUs that CUDA shows, in its order, with all MIG instances of a GPU in its place.

    Where CUDA_VISIBLE_DEVICES is set, only what it names. Raises UsageError if there is no driver.
    """
    nvml = _opened(machine)
    groups = list(_groups(nvml))
    cards, _ = _ordered(nvml, machine, groups)
    if machine.environment.get("CUDA_VISIBLE_DEVICES") is not None:
        return tuple(card.uuid for card in cards)
    parts = {group[0].uuid: group for group in groups if group}
    return tuple(part.uuid for card in cards for part in parts.get(card.uuid, [card]))


def _ordered(nvml: Any, machine: Machine, groups: list[list[Card]]) -> tuple[list[Card], bool]:
    """Return the cards that CUDA shows, in its order, and whether that order is certain."""
    cards = _torch_order(machine, groups)
    sure = cards is not None or _order_is_sure(machine, groups)
    if cards is None:
        cards = _visible(groups if sure else _fastest_first(nvml, groups), machine)
    return cards, sure


def _groups(nvml: Any) -> Iterator[list[Card]]:
    """Yield a list for each GPU in PCI order: the GPU, or its MIG instances in MIG mode."""
    for index in range(_call(nvml, "nvmlDeviceGetCount") or 0):
        handle = _call(nvml, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:  # lost or not permitted: CUDA does not count it either
            continue
        name = str(_call(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU")
        capability = _call(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
        card = Card(handle, str(_call(nvml, "nvmlDeviceGetUUID", handle)), name, capability and tuple(capability))
        mode = _call(nvml, "nvmlDeviceGetMigMode", handle)
        yield list(_instances(nvml, card)) if mode and mode[0] == 1 else [card]


def _instances(nvml: Any, card: Card) -> Iterator[Card]:
    for index in range(_call(nvml, "nvmlDeviceGetMaxMigDeviceCount", card.handle) or 0):
        handle = _call(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", card.handle, index)
        if handle is None:
            continue
        name = str(_call(nvml, "nvmlDeviceGetName", handle) or card.name)
        name = name if "MIG" in name else f"{name} MIG"
        yield Card(handle, str(_call(nvml, "nvmlDeviceGetUUID", handle)), name, card.capability, card.handle)


def torch_cuda(machine: Machine) -> Any:
    """Return `torch.cuda` if torch is loaded and has started CUDA, else None."""
    cuda = getattr(machine.modules.get("torch"), "cuda", None)
    started = getattr(cuda, "is_initialized", None)
    return cuda if started and started() else None


def _torch_order(machine: Machine, groups: list[list[Card]]) -> list[Card] | None:
    """Return the cards in torch's order, by UUID; None if CUDA has not started or a UUID is unknown."""
    cuda = torch_cuda(machine)
    if cuda is None:
        return None
    cards = {card.uuid.removeprefix("GPU-").removeprefix("MIG-"): card for group in groups for card in group}
    uuids = [str(getattr(cuda.get_device_properties(index), "uuid", "")) for index in range(cuda.device_count())]
    return [cards[uuid] for uuid in uuids] if all(uuid in cards for uuid in uuids) else None


def _order_is_sure(machine: Machine, groups: list[list[Card]]) -> bool:
    """Return whether NVML's order (by PCI address) is CUDA's, which puts the fastest GPU first by default."""
    names = {group[0].name for group in groups if group}
    return machine.environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(names) < 2


def _fastest_first(nvml: Any, groups: list[list[Card]]) -> list[list[Card]]:
    """Return CUDA's default order as far as it is documented: the fastest GPU first, the others as they are."""
    speeds = [_rates(nvml, group[0])[1] if group else 0.0 for group in groups]
    first = speeds.index(max(speeds))
    return [groups[first], *groups[:first], *groups[first + 1 :]]


def _visible(groups: list[list[Card]], machine: Machine) -> list[Card]:
    """Apply CUDA_VISIBLE_DEVICES: entries up to the first unknown one; a repeated entry hides all.

    A GPU in MIG mode shows its first instance unless an instance's UUID is named.
    """
    wanted = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [group[0] for group in groups if group]
    cards: list[Card] = []
    for entry in wanted.split(","):
        card = _named(groups, entry.strip())
        if card is None:
            break
        if card in cards:
            return []
        cards.append(card)
    return cards


def _named(groups: list[list[Card]], entry: str) -> Card | None:
    """Return the card of an ordinal, or of the beginning of a GPU's or MIG instance's UUID."""
    if entry.startswith(("GPU-", "MIG-")):
        return next((card for group in groups for card in group if card.uuid.startswith(entry)), None)
    ordinal = re.match(r"\+?\d+", entry)  # like strtoul: `1gpu` is 1
    index = int(ordinal.group()) if ordinal else len(groups)
    return groups[index][0] if index < len(groups) and groups[index] else None


def _rates(nvml: Any, card: Card) -> tuple[float, float]:
    """Return peak rates (bytes/s, FLOP/s) by name; a MIG instance gets its share of the GPU's memory."""
    if card.whole is None:
        return rates_for(card.name, (_memory(nvml, card) or (0, 0))[0], card.capability)
    part, whole = (_memory(nvml, one) or (1, 1) for one in (card, Card(card.whole, "", "", None)))
    bandwidth, flops = rates_for(card.name.partition(" MIG")[0], whole[0], card.capability)
    share = min(part[0] / whole[0], 1.0)
    return bandwidth * share, flops * share


def _memory(nvml: Any, card: Card) -> tuple[int, int] | None:
    """Return (total, free) in bytes; the total excludes what the driver reserves, as CUDA's does."""
    newer = _call(nvml, "nvmlDeviceGetMemoryInfo", card.handle, getattr(nvml, "nvmlMemory_v2", None))
    memory = newer or _call(nvml, "nvmlDeviceGetMemoryInfo", card.handle)
    if memory is None or not 0 < memory.total < _UNKNOWN_BYTES:
        return None
    return memory.total - getattr(memory, "reserved", 0), memory.free


@dataclass(frozen=True, slots=True)
class _Processes:
    """Bytes by process id where the driver reports them, and the ids of graphics processes."""

    bytes_by_process: dict[int, int]
    graphics: frozenset[int]

    def held_by(self, processes: frozenset[int]) -> int:
        return sum(self.bytes_by_process.get(process, 0) for process in processes)


def _processes(nvml: Any, card: Card) -> _Processes:
    computing = _call(nvml, "nvmlDeviceGetComputeRunningProcesses", card.handle) or []
    drawing = _call(nvml, "nvmlDeviceGetGraphicsRunningProcesses", card.handle) or []
    reported = [one for one in (*computing, *drawing) if one.usedGpuMemory is not None]
    known = {one.pid: one.usedGpuMemory for one in reported if one.usedGpuMemory < _UNKNOWN_BYTES}
    return _Processes(known, frozenset(one.pid for one in drawing))


def _device(nvml: Any, machine: Machine, index: int, card: Card, order_is_sure: bool) -> Device:
    """Return one card with its memory of this moment.

    `other_bytes` is the larger of other processes' reported memory and of all used memory less this process's: in
    containers and under WSL the driver reports only the sum.
    """
    total, free = _total_and_free(nvml, machine, index, card)
    processes = _processes(nvml, card)
    own = processes.bytes_by_process.get(machine.process()) or own_bytes(machine, index, total - free)
    # In a container the driver's process ids are the host's, so this process may be among the others.
    known = machine.process() in processes.bytes_by_process or not own
    reported = processes.held_by(frozenset(processes.bytes_by_process) - {machine.process()}) if known else 0
    others = max(reported, total - free - own, 0)
    bandwidth, flops = _rates(nvml, card)
    return Device(
        kind="cuda",
        index=index,
        name=card.name,
        total_bytes=total,
        free_bytes=max(min(free, total - others - own), 0),
        process_bytes=own,
        other_bytes=others,
        compute_capability=card.capability,
        bf16=card.capability is not None and card.capability >= (8, 0),
        bandwidth_bytes_per_second=bandwidth,
        flops_per_second=flops,
        notes=tuple(_notes(nvml, machine, card, processes, order_is_sure)),
    )


def _total_and_free(nvml: Any, machine: Machine, index: int, card: Card) -> tuple[int, int]:
    """Return the driver's figures, RAM's where NVML has none (shared memory), and torch's where smaller."""
    memory = _memory(nvml, card)
    if memory is None:
        host = host_memory(machine)
        memory = host.total_bytes, host.free_bytes
    if not has_context(machine, index):  # mem_get_info would create one, on a GPU that may never be used
        return memory
    free, total = torch_cuda(machine).mem_get_info(index)
    return min(memory[0], total), min(memory[1], free)


def has_context(machine: Machine, index: int) -> bool:
    """Return whether this process is known to have a CUDA context on a GPU."""
    cuda = torch_cuda(machine)
    if cuda is None:
        return False
    return (machine.process(), index) in machine.context_bytes or cuda.memory_reserved(index) > 0


def own_bytes(machine: Machine, index: int, used_bytes: int) -> int:
    """Return this process's bytes on a GPU where the driver does not report them: torch's segments and the context.

    The context has the size that `remember_context` measured, else the usual one; the sum is at most `used_bytes`.
    """
    if not has_context(machine, index):
        return 0
    context = machine.context_bytes.get((machine.process(), index), ASSUMED_CONTEXT_BYTES)
    return min(int(torch_cuda(machine).memory_reserved(index)) + context, used_bytes)


def free_by_uuid(machine: Machine) -> dict[str, int]:
    """Return the free bytes of each GPU by the driver, without GPUs of which it does not report them."""
    nvml = _opened(machine)
    found = ((card.uuid, _memory(nvml, card)) for group in _groups(nvml) for card in group)
    return {uuid: memory[1] for uuid, memory in found if memory is not None}


def remember_context(machine: Machine, index: int, before: Mapping[str, int]) -> None:
    """Store the context's size: the fall of free memory since `before` (`free_by_uuid`) less torch's segments.

    A size that no context has is not stored: other processes allocated or freed memory meanwhile.
    """
    nvml = _opened(machine)
    cards, _ = _ordered(nvml, machine, list(_groups(nvml)))
    after = free_by_uuid(machine)
    uuid = cards[index].uuid if index < len(cards) else ""
    if uuid not in before or uuid not in after:
        return
    taken = before[uuid] - after[uuid] - int(torch_cuda(machine).memory_reserved(index))
    if 0 < taken <= _MAX_CONTEXT_BYTES:
        machine.context_bytes[machine.process(), index] = taken


def _notes(nvml: Any, machine: Machine, card: Card, processes: _Processes, order_is_sure: bool) -> Iterator[str]:
    if machine.is_wsl():
        yield _WSL_NOTE
    held = processes.held_by(processes.graphics - {machine.process()})
    if held:
        yield f"graphics programs hold {format_bytes(held)} of this GPU"
    elif processes.graphics or _call(nvml, "nvmlDeviceGetDisplayActive", card.handle) == 1:
        yield "a display runs on this GPU; the driver does not report its memory"
    if card.whole is not None:
        yield "MIG instance: a part of a GPU"
    if _memory(nvml, card) is None:
        yield "the driver does not report this GPU's memory: it is assumed to share the host's"
    if not order_is_sure:
        yield _ORDER_NOTE
