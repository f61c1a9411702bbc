"""Allocations in a Chrome trace of torch.profiler: their sizes, lifetimes, phases and kinds, and sums of them.

Works on the trace's events (operators, Python functions, phase marks, memory events, GPU kernels) without torch.
*Cumulative* bytes are all that was allocated; *peak* bytes are the most that was allocated at one moment.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vidqa.profiling.allocation_classifier import NO_PHASE, CallSite, ModelShapes, Shape, classify, phase_of

_OPERATOR, _FUNCTION, _MARK = "cpu_op", "python_function", "user_annotation"  # categories of events
_NO_OPERATOR = "(no operator)"
# These only allocate; the operator that calls them is the one to name.
_ALLOCATORS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::resize_", "aten::new_empty")
_MAX_MOMENTS = 1500


@dataclass(frozen=True, slots=True)
class Allocation:
    """Bytes that live from `begin` to `end`, in seconds from the trace's start; `end` is None where they outlive it.

    `words` is the kind of `allocation_classifier.classify`.
    """

    size_bytes: int
    begin: float
    end: float | None
    operator: str
    words: str
    phase: str
    shape: str


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of a group of allocations. `seconds` is an operator's time without the operators it called."""

    name: str
    count: int
    cumulative_bytes: int
    peak_bytes: int
    seconds: float = 0.0


@dataclass(slots=True)
class _Span:
    """An operator, function or phase mark on one thread; times in microseconds."""

    name: str
    category: str
    begin: float
    end: float
    shapes: tuple[Shape, ...]
    children: float = 0.0


def _names(stack: Sequence[_Span], category: str) -> tuple[str, ...]:
    return tuple(span.name for span in stack if span.category == category)


@dataclass(slots=True)
class Trace:
    """Allocations in their order, and seconds of operators without the operators that they call.

    `device_seconds` are seconds of GPU kernels by the operator that launched them.
    """

    allocations: list[Allocation] = field(default_factory=list)
    operator_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    phase_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    device_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0


def read_trace(events: Iterable[Mapping[str, Any]], model: ModelShapes, *, device_type: int) -> Trace:
    """Return the allocations on one type of device (0: host, 1: CUDA) and the seconds of operators."""
    timed = [event for event in events if event.get("ph") in {"X", "i"} and "ts" in event]
    start = min((float(event["ts"]) for event in timed), default=0.0)
    trace = Trace()
    trace.seconds = (max((float(e["ts"]) + float(e.get("dur", 0)) for e in timed), default=0.0) - start) / 1e6
    by_thread: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for event in timed:
        by_thread[event.get("tid")].append(event)
    pending: list[tuple[float, int, int, Allocation | None]] = []
    for thread_events in by_thread.values():
        pending += _walk(thread_events, start, model, device_type, trace)
    trace.allocations = _match_frees(pending)
    _add_kernels(timed, trace)
    return trace


def _walk(
    events: Sequence[Mapping[str, Any]], start: float, model: ModelShapes, device_type: int, trace: Trace
) -> Iterator[tuple[float, int, int, Allocation | None]]:
    """Yield (seconds, address, bytes, allocation) of a thread's memory events; the allocation is None for a free."""
    stack: list[_Span] = []
    for event in sorted(events, key=lambda event: (float(event["ts"]), -float(event.get("dur", 0)))):
        moment = float(event["ts"])
        while stack and stack[-1].end < moment:
            _leave(stack, trace)
        if event.get("name") == "[memory]":
            arguments = event["args"]
            if int(arguments["Device Type"]) == device_type:
                seconds, size = (moment - start) / 1e6, int(arguments["Bytes"])
                allocation = _allocation(stack, seconds, size, model) if size > 0 else None
                yield seconds, int(arguments["Addr"]), size, allocation
        elif event.get("cat") in {_OPERATOR, _FUNCTION, _MARK}:
            stack.append(_span(event, moment))
    while stack:
        _leave(stack, trace)


def _span(event: Mapping[str, Any], moment: float) -> _Span:
    category = str(event["cat"])
    shapes = _shapes(event.get("args", {}).get("Input Dims", ())) if category == _OPERATOR else ()
    return _Span(str(event["name"]), category, moment, moment + float(event.get("dur", 0)), shapes)


def _leave(stack: list[_Span], trace: Trace) -> None:
    """Pop the innermost span and add an operator's time, without that of the operators inside, to the trace."""
    span = stack.pop()
    duration, is_operator = span.end - span.begin, span.category == _OPERATOR
    if is_operator:
        seconds = max(duration - span.children, 0.0) / 1e6
        trace.operator_seconds[span.name] += seconds
        trace.phase_seconds[phase_of(_names(stack, _MARK))] += seconds
    if stack:
        stack[-1].children += duration if is_operator else span.children


def _shapes(dims: Any) -> tuple[Shape, ...]:
    """Return `Input Dims` as shapes; a list of tensors (of `cat`) gives the shape of each."""
    found: list[Shape] = []
    for entry in dims if isinstance(dims, list) else ():
        if not isinstance(entry, list):
            continue
        if entry and all(isinstance(part, list) for part in entry):
            found += _shapes(entry)
        elif all(isinstance(part, int) for part in entry):
            found.append(tuple(entry))
    return tuple(found)


def _allocation(stack: Sequence[_Span], seconds: float, size: int, model: ModelShapes) -> Allocation:
    operators = [span for span in stack if span.category == _OPERATOR]
    shapes = tuple(span.shapes for span in operators)
    site = CallSite(_names(stack, _OPERATOR), shapes, _names(stack, _FUNCTION))
    caller = next((span for span in reversed(operators) if span.name not in _ALLOCATORS), None)
    caller = caller or (operators[-1] if operators else None)
    shape = " ".join("×".join(map(str, one)) for one in caller.shapes[:3] if one) if caller else ""
    name = caller.name if caller else _NO_OPERATOR
    return Allocation(size, seconds, None, name, classify(site, model), phase_of(_names(stack, _MARK)), shape)


def _match_frees(events: Iterable[tuple[float, int, int, Allocation | None]]) -> list[Allocation]:
    """Return the allocations with their ends, in order; frees of what was allocated before the trace are ignored."""
    alive: dict[int, int] = {}
    allocations: list[Allocation] = []
    for seconds, address, _, allocation in sorted(events, key=lambda event: event[0]):
        if allocation is not None:
            alive[address] = len(allocations)
            allocations.append(allocation)
        elif (place := alive.pop(address, None)) is not None:
            allocations[place] = replace(allocations[place], end=seconds)
    return allocations


def _add_kernels(events: Iterable[Mapping[str, Any]], trace: Trace) -> None:
    """Add GPU time to the operator that launched each kernel: both have the same `External id`."""
    operators = {
        event["args"]["External id"]: event["name"]
        for event in events
        if event.get("cat") == _OPERATOR and "External id" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}:
            name = operators.get(event.get("args", {}).get("External id"), _NO_OPERATOR)
            trace.device_seconds[str(name)] += float(event["dur"]) / 1e6


def _changes(allocations: Sequence[Allocation]) -> list[tuple[float, int, int]]:
    """Return (seconds, signed bytes, index) of every allocation and free, in order; allocations first at one moment."""
    begun = [(one.begin, one.size_bytes, place) for place, one in enumerate(allocations)]
    ended = [(one.end, -one.size_bytes, place) for place, one in enumerate(allocations) if one.end is not None]
    return sorted([*begun, *ended], key=lambda change: (change[0], change[1] < 0))


def peak_bytes(allocations: Sequence[Allocation]) -> int:
    """Return the most bytes that were allocated at one moment."""
    level = most = 0
    for _, size, _ in _changes(allocations):
        level += size
        most = max(most, level)
    return most


def alive_at_peak(allocations: Sequence[Allocation]) -> list[Allocation]:
    """Return the allocations that were alive at the peak, the largest first."""
    level = most = 0
    alive: set[int] = set()
    best: set[int] = set()
    for _, size, place in _changes(allocations):
        level += size
        (alive.add if size > 0 else alive.discard)(place)
        if level > most:
            most, best = level, set(alive)
    return sorted((allocations[place] for place in best), key=lambda one: -one.size_bytes)


def totals(allocations: Sequence[Allocation], key: str, seconds: Mapping[str, float] | None = None) -> list[Total]:
    """Return totals by `operator`, `words` or `phase`, the largest cumulative bytes first."""
    groups: dict[str, list[Allocation]] = defaultdict(list)
    for one in allocations:
        groups[getattr(one, key)].append(one)
    times = seconds or {}
    sums = [
        Total(name, len(group), sum(one.size_bytes for one in group), peak_bytes(group), times.get(name, 0.0))
        for name, group in groups.items()
    ]
    return sorted(sums, key=lambda total: -total.cumulative_bytes)


def level_peaks(allocations: Sequence[Allocation]) -> dict[str, int]:
    """Return the most bytes of all phases that were allocated at the moments when each phase allocated."""
    level, peaks = 0, dict[str, int]()
    for _, size, place in _changes(allocations):
        level += size
        if size > 0:
            phase = allocations[place].phase
            peaks[phase] = max(peaks.get(phase, 0), level)
    return peaks


@dataclass(frozen=True, slots=True)
class AllocationTimeline:
    """Allocated bytes by kind at moments of time, and when each phase first allocated."""

    seconds: tuple[float, ...]
    layers: Mapping[str, tuple[int, ...]]
    phases: tuple[tuple[str, float], ...]

    def largest(self, count: int) -> list[str]:
        """Return the kinds with the highest peaks, the highest first."""
        return sorted(self.layers, key=lambda name: -max(self.layers[name], default=0))[:count]

    def layer(self, name: str) -> tuple[int, ...]:
        """Return the bytes of one kind at every moment."""
        return self.layers[name]

    def rest(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the bytes of all other kinds at every moment."""
        others = [layer for name, layer in self.layers.items() if name not in names]
        return tuple(map(sum, zip(*others, strict=True))) if others else (0,) * len(self.seconds)

    def total(self) -> tuple[int, ...]:
        """Return the bytes of all kinds at every moment."""
        return self.rest(())


def make_timeline(
    allocations: Sequence[Allocation], base: Mapping[str, int], moments: int = _MAX_MOMENTS
) -> AllocationTimeline:
    """Return about `moments` moments, the peak of each stretch of the trace. `base` has bytes from before the trace."""
    changes = _changes(allocations)
    levels = dict(base) | {one.words: base.get(one.words, 0) for one in allocations}
    stretch = max(-(-len(changes) // moments), 1)
    seconds: list[float] = [0.0]
    states = [dict(levels)]
    for start in range(0, len(changes), stretch):
        peaks = []
        for moment, size, place in changes[start : start + stretch]:
            levels[allocations[place].words] += size
            peaks.append((sum(levels.values()), moment, dict(levels)))
        _, moment, state = max(peaks, key=lambda peak: peak[0])
        seconds.append(moment)
        states.append(state)
    layers = {name: tuple(state[name] for state in states) for name in levels}
    starts: dict[str, float] = {}
    for one in allocations:
        if one.phase != NO_PHASE:
            starts.setdefault(one.phase, one.begin)
    return AllocationTimeline(tuple(seconds), layers, tuple(starts.items()))
