"""NVIDIA GPUs as their driver describes them (NVML), numbered as CUDA numbers them.

Creates no CUDA context and never imports torch; where torch is already loaded and has started
CUDA, its numbering and its own word on free memory count too. Every question to NVML may go
unanswered (MIG, containers, WSL, Jetson): what is not told is left out, never guessed as free.
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

# A context with the kernels that are loaded by and by, until it was measured.
ASSUMED_CONTEXT_BYTES = 480 * 2**20
_MOST_CONTEXT_BYTES = 2**31  # a larger fall of free memory was somebody else's
_UNKNOWN_BYTES = 2**63  # NVML's "not available" is the largest 64-bit number
_WSL_NOTE = "WSL2: allocations beyond the card spill into host memory, slowly, instead of failing"
_ORDER_NOTE = (
    "CUDA may number these different GPUs otherwise until it has started; CUDA_DEVICE_ORDER=PCI_BUS_ID makes it sure"
)


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, or one MIG instance of a GPU; `whole` is then the GPU's handle."""

    handle: Any
    uuid: str
    name: str
    capability: tuple[int, int] | None
    whole: Any = None


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver's version, and the newest CUDA version that it runs."""

    version: str
    cuda: str


def _opened(machine: Machine) -> Any:
    """NVML, started; raises UsageError where there is no driver.

    It stays started until the process ends: the first start takes tens of milliseconds, later
    ones only count, and memory is read many times a second.
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


def _ask(nvml: Any, question: str, *arguments: Any) -> Any:
    """NVML's answer, or None where this card, driver or container gives none."""
    try:
        return getattr(nvml, question)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def driver(machine: Machine) -> Driver:
    """Versions of the driver; raises UsageError where there is none."""
    nvml = _opened(machine)
    number = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2") or 0
    cuda = f"{number // 1000}.{number % 1000 // 10}" if number else "unknown"
    return Driver(str(_ask(nvml, "nvmlSystemGetDriverVersion") or "unknown"), cuda)


def cuda_devices(machine: Machine) -> tuple[Device, ...]:
    """The GPUs that CUDA shows to this process, in its order; raises UsageError where there is no driver."""
    nvml = _opened(machine)
    groups = list(_groups(nvml))
    cards, sure = _ordered(nvml, machine, groups)
    return tuple(_device(nvml, machine, index, card, sure) for index, card in enumerate(cards))


def cuda_uuids(machine: Machine) -> tuple[str, ...]:
    """UUIDs of the GPUs that CUDA shows, in its order, all MIG instances of a GPU in its place: one process each.

    Raises UsageError where there is no driver. A UUID that CUDA_VISIBLE_DEVICES names stands for itself alone.
    """
    nvml = _opened(machine)
    groups = list(_groups(nvml))
    cards, _ = _ordered(nvml, machine, groups)
    if machine.environment.get("CUDA_VISIBLE_DEVICES") is not None:
        return tuple(card.uuid for card in cards)
    parts = {group[0].uuid: group for group in groups if group}
    return tuple(part.uuid for card in cards for part in parts.get(card.uuid, [card]))


def _ordered(nvml: Any, machine: Machine, groups: list[list[Card]]) -> tuple[list[Card], bool]:
    """The cards that CUDA shows, in its order, and whether that order is sure."""
    cards = _torch_order(machine, groups)
    sure = cards is not None or _order_is_sure(machine, groups)
    if cards is None:
        cards = _visible(groups if sure else _fastest_first(nvml, groups), machine)
    return cards, sure


def _groups(nvml: Any) -> Iterator[list[Card]]:
    """Per GPU in PCI order: the GPU alone, or its MIG instances where it is cut into such."""
    for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0):
        handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:  # lost, or not permitted: CUDA does not count it either
            continue
        name = str(_ask(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU")
        capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
        card = Card(handle, str(_ask(nvml, "nvmlDeviceGetUUID", handle)), name, capability and tuple(capability))
        mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
        yield list(_instances(nvml, card)) if mode and mode[0] == 1 else [card]


def _instances(nvml: Any, card: Card) -> Iterator[Card]:
    for index in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", card.handle) or 0):
        handle = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", card.handle, index)
        if handle is None:
            continue
        name = str(_ask(nvml, "nvmlDeviceGetName", handle) or card.name)
        name = name if "MIG" in name else f"{name} MIG"
        yield Card(handle, str(_ask(nvml, "nvmlDeviceGetUUID", handle)), name, card.capability, card.handle)


def torch_cuda(machine: Machine) -> Any:
    """torch.cuda where torch is loaded and has started CUDA, else None."""
    cuda = getattr(machine.modules.get("torch"), "cuda", None)
    started = getattr(cuda, "is_initialized", None)
    return cuda if started and started() else None


def _torch_order(machine: Machine, groups: list[list[Card]]) -> list[Card] | None:
    """CUDA's own order, matched by UUID; None where CUDA has not started or a UUID is unknown."""
    cuda = torch_cuda(machine)
    if cuda is None:
        return None
    cards = {card.uuid.removeprefix("GPU-").removeprefix("MIG-"): card for group in groups for card in group}
    uuids = [str(getattr(cuda.get_device_properties(index), "uuid", "")) for index in range(cuda.device_count())]
    return [cards[uuid] for uuid in uuids] if all(uuid in cards for uuid in uuids) else None


def _order_is_sure(machine: Machine, groups: list[list[Card]]) -> bool:
    """NVML counts by PCI address; CUDA puts the fastest first unless told, which matters for unlike GPUs."""
    names = {group[0].name for group in groups if group}
    return machine.environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(names) < 2


def _fastest_first(nvml: Any, groups: list[list[Card]]) -> list[list[Card]]:
    """CUDA's default order as far as it is documented: the fastest GPU first, the others as they lie."""
    speeds = [_rates(nvml, group[0])[1] if group else 0.0 for group in groups]
    first = speeds.index(max(speeds))
    return [groups[first], *groups[:first], *groups[first + 1 :]]


def _visible(groups: list[list[Card]], machine: Machine) -> list[Card]:
    """What CUDA_VISIBLE_DEVICES leaves: entries up to the first that names nothing; a repeated one hides all.

    A GPU that is cut into MIG instances shows its first one, unless an instance's UUID is named.
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
    """The card of an ordinal, or of the beginning of a GPU's or MIG instance's UUID."""
    if entry.startswith(("GPU-", "MIG-")):
        return next((card for group in groups for card in group if card.uuid.startswith(entry)), None)
    ordinal = re.match(r"\+?\d+", entry)  # like strtoul: `1gpu` is 1
    index = int(ordinal.group()) if ordinal else len(groups)
    return groups[index][0] if index < len(groups) and groups[index] else None


def _rates(nvml: Any, card: Card) -> tuple[float, float]:
    """Peak rates by name; a MIG instance gets the share of its GPU that it has of the memory."""
    if card.whole is None:
        return rates_for(card.name, (_memory(nvml, card) or (0, 0))[0], card.capability)
    part, whole = (_memory(nvml, one) or (1, 1) for one in (card, Card(card.whole, "", "", None)))
    bandwidth, flops = rates_for(card.name.partition(" MIG")[0], whole[0], card.capability)
    share = min(part[0] / whole[0], 1.0)
    return bandwidth * share, flops * share


def _memory(nvml: Any, card: Card) -> tuple[int, int] | None:
    """(total, free) in bytes; what the driver keeps for itself is not counted in the total, as in CUDA's."""
    newer = _ask(nvml, "nvmlDeviceGetMemoryInfo", card.handle, getattr(nvml, "nvmlMemory_v2", None))
    answer = newer or _ask(nvml, "nvmlDeviceGetMemoryInfo", card.handle)
    if answer is None or not 0 < answer.total < _UNKNOWN_BYTES:
        return None
    return answer.total - getattr(answer, "reserved", 0), answer.free


@dataclass(frozen=True, slots=True)
class _Use:
    """Bytes by process id, as far as told, and which of the processes draw on a screen."""

    bytes_by_process: dict[int, int]
    graphics: frozenset[int]

    def held_by(self, processes: frozenset[int]) -> int:
        return sum(self.bytes_by_process.get(process, 0) for process in processes)


def _use(nvml: Any, card: Card) -> _Use:
    computing = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", card.handle) or []
    drawing = _ask(nvml, "nvmlDeviceGetGraphicsRunningProcesses", card.handle) or []
    told = [one for one in (*computing, *drawing) if one.usedGpuMemory is not None]
    known = {one.pid: one.usedGpuMemory for one in told if one.usedGpuMemory < _UNKNOWN_BYTES}
    return _Use(known, frozenset(one.pid for one in drawing))


def _device(nvml: Any, machine: Machine, index: int, card: Card, order_is_sure: bool) -> Device:
    """One card as it is now.

    Others' share is the larger of what is told about their processes and what is in use beyond this
    process: in containers and under WSL the processes are not told, the sum is.
    """
    total, free = _total_and_free(nvml, machine, index, card)
    use = _use(nvml, card)
    own = use.bytes_by_process.get(machine.process()) or own_bytes(machine, index, total - free)
    # In a container the driver names our process by a number that we do not know: its table says nothing then.
    known = machine.process() in use.bytes_by_process or not own
    told = use.held_by(frozenset(use.bytes_by_process) - {machine.process()}) if known else 0
    others = max(told, total - free - own, 0)
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
        notes=tuple(_notes(nvml, machine, card, use, order_is_sure)),
    )


def _total_and_free(nvml: Any, machine: Machine, index: int, card: Card) -> tuple[int, int]:
    """The driver's word, or RAM where GPU and processor share it and NVML has none; torch's where smaller."""
    answer = _memory(nvml, card)
    if answer is None:
        host = host_memory(machine)
        answer = host.total_bytes, host.free_bytes
    if not has_context(machine, index):  # asking CUDA would make one, on a GPU that may never be used
        return answer
    free, total = torch_cuda(machine).mem_get_info(index)
    return min(answer[0], total), min(answer[1], free)


def has_context(machine: Machine, index: int) -> bool:
    """Whether this process is known to have a CUDA context on a GPU."""
    cuda = torch_cuda(machine)
    if cuda is None:
        return False
    return (machine.process(), index) in machine.context_bytes or cuda.memory_reserved(index) > 0


def own_bytes(machine: Machine, index: int, used_bytes: int) -> int:
    """What this process holds of a GPU, where the driver does not tell: torch's segments, and the context.

    The context is as large as `remember_context` measured it, else as usual, and both no more than is in use.
    """
    if not has_context(machine, index):
        return 0
    context = machine.context_bytes.get((machine.process(), index), ASSUMED_CONTEXT_BYTES)
    return min(int(torch_cuda(machine).memory_reserved(index)) + context, used_bytes)


def free_by_uuid(machine: Machine) -> dict[str, int]:
    """Free bytes of every GPU by the driver's word alone; nothing where it does not tell them."""
    nvml = _opened(machine)
    told = [(card.uuid, _memory(nvml, card)) for group in _groups(nvml) for card in group]
    return {uuid: memory[1] for uuid, memory in told if memory is not None}


def remember_context(machine: Machine, index: int, before: Mapping[str, int]) -> None:
    """Keep by how much free memory fell since `before` (`free_by_uuid`), less what torch's allocator took.

    Nothing is kept where that is no context's size: other processes took or gave back memory meanwhile.
    """
    nvml = _opened(machine)
    cards, _ = _ordered(nvml, machine, list(_groups(nvml)))
    after = free_by_uuid(machine)
    uuid = cards[index].uuid if index < len(cards) else ""
    if uuid not in before or uuid not in after:
        return
    taken = before[uuid] - after[uuid] - int(torch_cuda(machine).memory_reserved(index))
    if 0 < taken <= _MOST_CONTEXT_BYTES:
        machine.context_bytes[machine.process(), index] = taken


def _notes(nvml: Any, machine: Machine, card: Card, use: _Use, order_is_sure: bool) -> Iterator[str]:
    if machine.is_wsl():
        yield _WSL_NOTE
    held = use.held_by(use.graphics - {machine.process()})
    if held:
        yield f"programs that draw on a screen hold {format_bytes(held)} of this GPU"
    elif use.graphics or _ask(nvml, "nvmlDeviceGetDisplayActive", card.handle) == 1:
        yield "a display runs on this GPU; how much memory it holds is not told"
    if card.whole is not None:
        yield "a MIG instance: a part of a GPU"
    if _memory(nvml, card) is None:
        yield "the driver does not tell the memory of this GPU, so it is taken to share the host's"
    if not order_is_sure:
        yield _ORDER_NOTE
