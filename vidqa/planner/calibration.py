"""What was measured on this machine: peaks of memory, rates of devices, and stage times of answers.

Kept in the user's state folder: `memory.jsonl` and `times.jsonl` have a line per answer, `caption_runs.jsonl` one per
captioning run, `rates.json` the rates by device and precision. A folder that cannot be written is no error: it must not
stop an answer.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vidqa.config import WEIGHT_CHOICES, state_folder
from vidqa.types import Device
from vidqa.utils.atomic_write import write_whole

STAGES = ("start", "video", "vision", "prefill", "decode")
_PEAKS, _RATES, _TIMES, _CAPTIONS = "memory.jsonl", "rates.json", "times.jsonl", "caption_runs.jsonl"
_MOST_RUNS, _MOST_ANSWERS, _MOST_CAPTION_RUNS = 500, 200, 100
_RECENT = 9  # answers that a correction is the median of
_MOST_CORRECTION = 20.0  # past this a timing is a machine that slept, not a slow one
# Reading and decoding depend on the machine and not on the model, so all models' answers count.
_SHARED_STAGES = ("start", "video")
_RATED_STAGES = ("vision", "prefill", "decode")  # those that the rates predict
_LEAST_JUDGED_SECONDS = 0.1  # predictions below this say nothing about rates


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds with weights of one precision.

    Products of many rows and attention are in FLOP/s. `weight_bytes_per_second` is how fast a product of a single row
    reads its weights. `operation_seconds` is the time of an operation on hardly any data.
    """

    matmul_flops_per_second: float
    attention_flops_per_second: float
    weight_bytes_per_second: float
    operation_seconds: float


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """What is known of a device's speed from this machine; empty where nothing was measured.

    `measured` has the rates by precision of the weights, since `measured_at`; `corrections` the measured over the
    predicted seconds of past answers of one model, by precision and stage (`STAGES`).
    """

    measured: Mapping[str, Rates] = field(default_factory=dict)
    measured_at: float = 0.0
    corrections: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


UNMEASURED = DeviceSpeed()


@dataclass(frozen=True, slots=True)
class CaptionTimes:
    """A captioning run: seconds until its first group was answered (loading) and of the rest, and its answers' tokens.

    `reference_seconds` are those that the catalog's speed predicts for the rest.
    """

    device: str
    model: str
    weights: str
    start_seconds: float
    seconds: float
    reference_seconds: float
    answers: int
    answer_tokens: int


def remember_peaks(
    device: Device, model: str, weights: str, predicted: int, measured: int, runtime: int | None
) -> None:
    """Append a run, in bytes of the process on CUDA, else of its tensors; drop the oldest above 500 runs."""
    row = {
        "device": _peak_key(device),
        "model": model,
        "weights": weights,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "runtime_bytes": runtime,
        "of": "process" if device.kind == "cuda" else "tensors",
    }
    _append(_PEAKS, row, _MOST_RUNS)


def runs() -> Iterator[dict[str, Any]]:
    """Yield past runs, the oldest first; skip lines that cannot be parsed or compared."""
    yield from filter(_is_comparable, _rows(_PEAKS, {"device", "predicted_bytes", "measured_bytes"}))


def _is_comparable(row: dict[str, Any]) -> bool:
    """Return whether what was measured is what is planned: the process on CUDA, only tensors elsewhere."""
    return str(row["device"]).startswith("cuda") or row.get("of") == "tensors"


def measured_runtime(device: Device) -> int | None:
    """Return the most bytes that the runtime took in the last 20 runs on this device, or None."""
    seen = [row["runtime_bytes"] for row in runs() if row["device"] == _peak_key(device) and row.get("runtime_bytes")]
    return max(seen[-20:]) if seen else None


def summary() -> tuple[int, float] | None:
    """Return the number of runs and the median of measured over predicted bytes; None before the first run."""
    ratios = [row["measured_bytes"] / row["predicted_bytes"] for row in runs() if row["predicted_bytes"]]
    return (len(ratios), _median(ratios)) if ratios else None


def _peak_key(device: Device) -> str:
    return f"{device.kind}:{device.name}"


def device_key(device: Device, threads: int) -> str:
    """Return what rates belong to: the device, and on a CPU the number of threads."""
    return f"{device.kind}:{device.name}" + (f":{threads}" if device.kind == "cpu" else "")


def stored_speed(key: str, model: str) -> DeviceSpeed:
    """Return the measured rates of a device and the corrections for a model."""
    entry = _entry(_read_rates(), key)
    rows = [row for row in _answers() if row["device"] == key and row["since"] == entry["measured_at"]]
    corrections = {weights: found for weights in WEIGHT_CHOICES if (found := _corrections(rows, model, weights))}
    return DeviceSpeed(entry["rates"], entry["measured_at"], corrections)


def remember_captions(run: CaptionTimes) -> None:
    """Append a captioning run; drop the oldest."""
    _append(_CAPTIONS, asdict(run), _MOST_CAPTION_RUNS)


def earlier_captions(key: str, model: str, weights: str) -> list[CaptionTimes]:
    """Return the captioning runs of a model in a precision on a device, the oldest first."""
    names = tuple(CaptionTimes.__dataclass_fields__)
    texts, numbers = names[:3], names[3:]
    return [
        CaptionTimes(key, model, weights, *(row[name] for name in numbers))
        for row in _rows(_CAPTIONS, set(names))
        if tuple(row[name] for name in texts) == (key, model, weights)
        and all(_number(row[name]) == row[name] for name in numbers)
    ]


def describe_rates(rates: Mapping[str, Rates]) -> str:
    """Return rates as text."""
    return "; ".join(
        f"{precision} products {one.matmul_flops_per_second / 1e9:,.0f} GFLOP/s, weights read at "
        f"{one.weight_bytes_per_second / 1e9:,.2g} GB/s"
        for precision, one in sorted(rates.items())
    )


def stored_precisions(key: str, torch_version: str) -> frozenset[str]:
    """Return the precisions whose rates were measured with this version of torch."""
    entry = _entry(_read_rates(), key)
    return frozenset(entry["rates"]) if entry["torch"] == torch_version else frozenset()


def store_rates(key: str, rates: Mapping[str, Rates], torch_version: str, now: float) -> None:
    """Store rates by precision, measured at `now` in seconds; those of another version of torch are replaced.

    Rates that another process has stored meanwhile stay. Times of answers by replaced rates no longer count.
    """
    with contextlib.suppress(OSError):
        stored = _read_rates()
        entry = _entry(stored, key)
        kept = entry["rates"] if entry["torch"] == torch_version else {}
        since = entry["measured_at"] if kept else now
        rows = {weights: asdict(one) for weights, one in (dict(rates) | kept).items()}
        stored[key] = {"torch": torch_version, "measured_at": since, "rates": rows}
        write_whole(state_folder() / _RATES, json.dumps(stored, indent=1) + "\n")


def remember_times(
    key: str, since: float, model: str, weights: str, predicted: Mapping[str, float], measured: Mapping[str, float]
) -> None:
    """Append an answer's seconds by stage, as predicted without corrections and as measured; drop the oldest.

    `since` is `measured_at` of the rates that predicted them. Where the answer was faster than they allow, they were
    measured while other programs held the device: they are forgotten, and the next run measures anew.
    """
    if any(_is_too_fast(predicted.get(stage, 0.0), measured.get(stage, 0.0)) for stage in _RATED_STAGES):
        _forget_rates(key, since)
    row = {
        "device": key,
        "since": since,
        "model": model,
        "weights": weights,
        "predicted_s": {stage: round(seconds, 6) for stage, seconds in predicted.items()},
        "measured_s": {stage: round(seconds, 6) for stage, seconds in measured.items()},
    }
    _append(_TIMES, row, _MOST_ANSWERS)


def _corrections(rows: list[dict[str, Any]], model: str, weights: str) -> dict[str, float]:
    own = [row for row in rows if row["model"] == model and row["weights"] == weights]
    found = {}
    for stage in STAGES:
        ratios = list(_ratios(rows if stage in _SHARED_STAGES else own, stage))
        if ratios:
            found[stage] = _median(ratios[-_RECENT:])
    return found


def _ratios(rows: list[dict[str, Any]], stage: str) -> Iterator[float]:
    for row in rows:
        predicted, measured = (_number(row[name].get(stage)) for name in ("predicted_s", "measured_s"))
        if predicted > 0 and 1 / _MOST_CORRECTION <= (ratio := measured / predicted) <= _MOST_CORRECTION:
            yield ratio


def _is_too_fast(predicted: float, measured: float) -> bool:
    return predicted >= _LEAST_JUDGED_SECONDS and 0 < measured < predicted / _MOST_CORRECTION


def _forget_rates(key: str, since: float) -> None:
    """Drop a device's rates of `since`; those that another process has measured meanwhile stay."""
    with contextlib.suppress(OSError):
        stored = _read_rates()
        if _entry(stored, key)["measured_at"] == since and stored.pop(key, None) is not None:
            write_whole(state_folder() / _RATES, json.dumps(stored, indent=1) + "\n")


def _answers() -> Iterator[dict[str, Any]]:
    """Yield past answers, the oldest first; skip lines that cannot be parsed."""
    for row in _rows(_TIMES, {"device", "since", "model", "weights", "predicted_s", "measured_s"}):
        if isinstance(row["predicted_s"], dict) and isinstance(row["measured_s"], dict):
            yield row


def _rows(name: str, needed: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of the state folder that have the needed keys; skip lines that cannot be parsed."""
    try:
        lines = (state_folder() / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and needed <= row.keys():
                yield row


def _read_rates() -> dict[str, Any]:
    try:
        stored = json.loads((state_folder() / _RATES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _entry(stored: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the entry of a device with the rates that are valid; an empty one where it is missing or damaged."""
    entry = stored.get(key)
    if isinstance(entry, dict) and isinstance(entry.get("rates"), dict):
        rates = {weights: one for weights, row in entry["rates"].items() if (one := _rates_of(row)) is not None}
        return {"torch": entry.get("torch"), "measured_at": entry.get("measured_at", 0), "rates": rates}
    return {"torch": None, "measured_at": 0, "rates": {}}


def _rates_of(row: Any) -> Rates | None:
    names = tuple(Rates.__dataclass_fields__)
    values = [_number(row.get(name)) for name in names] if isinstance(row, dict) else []
    return Rates(*values) if values and all(value > 0 for value in values) else None


def _number(value: Any) -> float:
    """Return a finite number, else 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0.0
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return 0.0
    return number if math.isfinite(number) else 0.0


def _median(values: list[float]) -> float:
    """Return the middle value, the upper one of two; the statistics module takes 5 ms to import."""
    return sorted(values)[len(values) // 2]


def _append(name: str, row: Mapping[str, Any], most: int) -> None:
    """Append a line to a file of the state folder; drop the oldest above `most` lines."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        path = state_folder() / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_whole(path, "\n".join([*lines[-(most - 1) :], json.dumps(row)]) + "\n")
