"""A profiler's trace as allocations: who asked for how much, in which phase, and until when.

Reads the events of a Chrome trace as torch.profiler writes them (operators, Python functions,
memory events, GPU kernels) and adds them up: *cumulative* is everything that was ever asked
for, *peak* what lived at once. Plain dictionaries in, plain numbers out; no torch.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vidqa.profiling.allocation_classifier import ELSEWHERE, Facts, Shape, Site, name_allocation, name_phase

_OPERATORS, _FUNCTIONS = "cpu_op", "python_function"
# They only hand out memory: what asked them is the operator.
_ALLOCATORS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::resize_", "aten::new_empty")
_MOST_MOMENTS = 1500


@dataclass(frozen=True, slots=True)
class Allocation:
    """Bytes from `begin` to `end` (seconds from the trace's start; None: to its end), and what they are."""

    size_bytes: int
    begin: float
    end: float | None
    operator: str
    words: str
    phase: str
    shape: str


@dataclass(frozen=True, slots=True)
class Total:
    """Allocations of one kind together. `seconds` is the operator's own time, without what it called."""

    name: str
    count: int
    cumulative_bytes: int
    peak_bytes: int
    seconds: float = 0.0


@dataclass(slots=True)
class _Span:
    """An operator or function on one thread, from its start to its end in microseconds."""

    name: str
    begin: float
    end: float
    is_operator: bool
    shapes: tuple[Shape, ...]
    children: float = 0.0


@dataclass(slots=True)
class Trace:
    """What was read: allocations in the order in which they were made, and operators' own seconds.

    `device_seconds` are those of a GPU's kernels, by the operator that launched them.
    """

    allocations: list[Allocation] = field(default_factory=list)
    operator_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    phase_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    device_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0


def read_trace(events: Iterable[Mapping[str, Any]], facts: Facts, *, device_type: int) -> Trace:
    """Allocations on one type of device (0: host, 1: CUDA) with the operators and functions around them."""
    kept = [event for event in events if event.get("ph") in {"X", "i"} and "ts" in event]
    start = min((float(event["ts"]) for event in kept), default=0.0)
    trace = Trace()
    trace.seconds = (max((float(e["ts"]) + float(e.get("dur", 0)) for e in kept), default=0.0) - start) / 1e6
    by_thread: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for event in kept:
        by_thread[event.get("tid")].append(event)
    pending: list[tuple[float, int, int, Allocation | None]] = []
    for events_here in by_thread.values():
        pending += _walk(events_here, start, facts, device_type, trace)
    trace.allocations = _matched(pending)
    _add_kernels(kept, trace)
    return trace


def _walk(
    events: Sequence[Mapping[str, Any]], start: float, facts: Facts, device_type: int, trace: Trace
) -> Iterator[tuple[float, int, int, Allocation | None]]:
    """(seconds, address, bytes, allocation) of a thread's memory events; None for what is given back."""
    stack: list[_Span] = []
    for event in sorted(events, key=lambda event: (float(event["ts"]), -float(event.get("dur", 0)))):
        moment = float(event["ts"])
        while stack and stack[-1].end < moment:
            _leave(stack, trace)
        if event.get("name") == "[memory]":
            told = event["args"]
            if int(told["Device Type"]) == device_type:
                seconds, size = (moment - start) / 1e6, int(told["Bytes"])
                made = _allocation(stack, seconds, size, facts) if size > 0 else None
                yield seconds, int(told["Addr"]), size, made
        elif event.get("cat") in {_OPERATORS, _FUNCTIONS}:
            stack.append(_span(event, moment))
    while stack:
        _leave(stack, trace)


def _span(event: Mapping[str, Any], moment: float) -> _Span:
    is_operator = event["cat"] == _OPERATORS
    shapes = _shapes(event.get("args", {}).get("Input Dims", ())) if is_operator else ()
    return _Span(str(event["name"]), moment, moment + float(event.get("dur", 0)), is_operator, shapes)


def _leave(stack: list[_Span], trace: Trace) -> None:
    """Take the innermost span off; an operator's time is its own, less that of the operators inside."""
    span = stack.pop()
    took = span.end - span.begin
    if span.is_operator:
        own = max(took - span.children, 0.0) / 1e6
        trace.operator_seconds[span.name] += own
        trace.phase_seconds[name_phase(tuple(one.name for one in stack if not one.is_operator))] += own
    if stack:
        stack[-1].children += took if span.is_operator else span.children


def _shapes(dims: Any) -> tuple[Shape, ...]:
    """Input Dims as shapes; a list of tensors (cat) becomes its tensors."""
    found: list[Shape] = []
    for entry in dims if isinstance(dims, list) else ():
        if not isinstance(entry, list):
            continue
        if entry and all(isinstance(part, list) for part in entry):
            found += _shapes(entry)
        elif all(isinstance(part, int) for part in entry):
            found.append(tuple(entry))
    return tuple(found)


def _allocation(stack: Sequence[_Span], seconds: float, size: int, facts: Facts) -> Allocation:
    operators = tuple(span for span in stack if span.is_operator)
    functions = tuple(span.name for span in stack if not span.is_operator)
    site = Site(tuple(span.name for span in operators), tuple(span.shapes for span in operators), functions)
    asking = next((span for span in reversed(operators) if span.name not in _ALLOCATORS), None)
    asking = asking or (operators[-1] if operators else None)
    shape = " ".join("×".join(map(str, one)) for one in asking.shapes[:3] if one) if asking else ""
    name = asking.name if asking else "(no operator)"
    return Allocation(size, seconds, None, name, name_allocation(site, facts), name_phase(functions), shape)


def _matched(events: Iterable[tuple[float, int, int, Allocation | None]]) -> list[Allocation]:
    """Allocations with their ends, in order; what was made before the trace began is passed over."""
    from dataclasses import replace

    living: dict[int, int] = {}
    made: list[Allocation] = []
    for seconds, address, _, allocation in sorted(events, key=lambda event: event[0]):
        if allocation is not None:
            living[address] = len(made)
            made.append(allocation)
        elif (place := living.pop(address, None)) is not None:
            made[place] = replace(made[place], end=seconds)
    return made


def _add_kernels(events: Iterable[Mapping[str, Any]], trace: Trace) -> None:
    """GPU time by the operator that launched each kernel: both carry the same `External id`."""
    operators = {
        event["args"]["External id"]: event["name"]
        for event in events
        if event.get("cat") == _OPERATORS and "External id" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}:
            name = operators.get(event.get("args", {}).get("External id"), "(no operator)")
            trace.device_seconds[str(name)] += float(event["dur"]) / 1e6


def _changes(allocations: Sequence[Allocation]) -> list[tuple[float, int, int]]:
    """(seconds, signed bytes, place) of every beginning and end, in order; at one moment beginnings come first."""
    begun = [(one.begin, one.size_bytes, place) for place, one in enumerate(allocations)]
    ended = [(one.end, -one.size_bytes, place) for place, one in enumerate(allocations) if one.end is not None]
    return sorted([*begun, *ended], key=lambda change: (change[0], change[1] < 0))


def peak_bytes(allocations: Sequence[Allocation]) -> int:
    """The most that lived at once."""
    level = most = 0
    for _, size, _ in _changes(allocations):
        level += size
        most = max(most, level)
    return most


def alive_at_peak(allocations: Sequence[Allocation]) -> list[Allocation]:
    """What lived at the moment when most did, the largest first."""
    level = most = 0
    living: set[int] = set()
    best: set[int] = set()
    for _, size, place in _changes(allocations):
        level += size
        if size > 0:
            living.add(place)
        else:
            living.discard(place)
        if level > most:
            most, best = level, set(living)
    return sorted((allocations[place] for place in best), key=lambda one: -one.size_bytes)


def totals(allocations: Sequence[Allocation], key: str, seconds: Mapping[str, float] | None = None) -> list[Total]:
    """Totals by `operator`, `words` or `phase`, the largest cumulative first."""
    groups: dict[str, list[Allocation]] = defaultdict(list)
    for one in allocations:
        groups[getattr(one, key)].append(one)
    times = seconds or {}
    made = [
        Total(name, len(group), sum(one.size_bytes for one in group), peak_bytes(group), times.get(name, 0.0))
        for name, group in groups.items()
    ]
    return sorted(made, key=lambda total: -total.cumulative_bytes)


def level_peaks(allocations: Sequence[Allocation]) -> dict[str, int]:
    """The most that lived at once, whoever made it, at the moments when each phase asked for more."""
    level, peaks = 0, dict[str, int]()
    for _, size, place in _changes(allocations):
        level += size
        if size > 0:
            phase = allocations[place].phase
            peaks[phase] = max(peaks.get(phase, 0), level)
    return peaks


@dataclass(frozen=True, slots=True)
class AllocationTimeline:
    """Living bytes by kind at moments of time, and when each stage first asked for memory."""

    seconds: tuple[float, ...]
    layers: Mapping[str, tuple[int, ...]]
    phases: tuple[tuple[str, float], ...]

    def largest(self, count: int) -> list[str]:
        """The kinds that reach most, the largest first."""
        return sorted(self.layers, key=lambda name: -max(self.layers[name], default=0))[:count]

    def layer(self, name: str) -> tuple[int, ...]:
        """One kind's bytes at every moment."""
        return self.layers[name]

    def rest(self, names: Sequence[str]) -> tuple[int, ...]:
        """The other kinds' bytes together."""
        others = [layer for name, layer in self.layers.items() if name not in names]
        return tuple(map(sum, zip(*others, strict=True))) if others else (0,) * len(self.seconds)

    def total(self) -> tuple[int, ...]:
        """Everything at every moment."""
        return self.rest(())


def make_timeline(
    allocations: Sequence[Allocation], base: Mapping[str, int], moments: int = _MOST_MOMENTS
) -> AllocationTimeline:
    """A picture's worth of moments: of each stretch the one where most lived. `base` was there before."""
    changes = _changes(allocations)
    levels = dict(base) | {one.words: base.get(one.words, 0) for one in allocations}
    stretch = max(-(-len(changes) // moments), 1)
    seconds: list[float] = [0.0]
    states = [dict(levels)]
    for start in range(0, len(changes), stretch):
        best, best_total = None, -1
        for moment, size, place in changes[start : start + stretch]:
            levels[allocations[place].words] += size
            total = sum(levels.values())
            if total > best_total:
                best, best_total = (moment, dict(levels)), total
        assert best is not None
        seconds.append(best[0])
        states.append(best[1])
    layers = {name: tuple(state[name] for state in states) for name in levels}
    begun: dict[str, float] = {}
    for one in allocations:
        if one.phase != ELSEWHERE:
            begun.setdefault(one.phase, one.begin)
    return AllocationTimeline(tuple(seconds), layers, tuple(begun.items()))
