"""Planned and measured peaks of past runs, in the user's state folder.

One JSON line per run. They give the runtime's own memory on this machine and the error of predictions. A folder that
cannot be written is no error: it must not stop an answer.
"""

import contextlib
import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from vidqa.config import state_folder
from vidqa.types import Device
from vidqa.utils.atomic_write import write_whole

_JOURNAL = "memory.jsonl"
_MOST_RUNS = 500


def remember(device: Device, model: str, weights: str, predicted: int, measured: int, runtime: int | None) -> None:
    """Append a run, in bytes of the process on CUDA, else of its tensors; drop the oldest above 500 runs."""
    row = {
        "device": _key(device),
        "model": model,
        "weights": weights,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "runtime_bytes": runtime,
        "of": "process" if device.kind == "cuda" else "tensors",
    }
    with contextlib.suppress(OSError):
        path = state_folder() / _JOURNAL
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_whole(path, "\n".join([*lines[-(_MOST_RUNS - 1) :], json.dumps(row)]) + "\n")


def runs() -> Iterator[dict[str, Any]]:
    """Yield past runs, the oldest first; skip lines that cannot be parsed or compared."""
    try:
        lines = (state_folder() / _JOURNAL).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            needed = {"device", "predicted_bytes", "measured_bytes"}
            if isinstance(row, dict) and needed <= row.keys() and _is_comparable(row):
                yield row


def _is_comparable(row: dict[str, Any]) -> bool:
    """Return whether what was measured is what is planned: the process on CUDA, only tensors elsewhere."""
    return str(row["device"]).startswith("cuda") or row.get("of") == "tensors"


def measured_runtime(device: Device) -> int | None:
    """Return the most bytes that the runtime took in the last 20 runs on this device, or None."""
    seen = [row["runtime_bytes"] for row in runs() if row["device"] == _key(device) and row.get("runtime_bytes")]
    return max(seen[-20:]) if seen else None


def summary() -> tuple[int, float] | None:
    """Return the number of runs and the median of measured over predicted bytes; None before the first run."""
    ratios = [row["measured_bytes"] / row["predicted_bytes"] for row in runs() if row["predicted_bytes"]]
    return (len(ratios), median(ratios)) if ratios else None


def _key(device: Device) -> str:
    return f"{device.kind}:{device.name}"
