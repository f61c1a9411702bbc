"""Planned and measured peaks of past runs, kept in the user's state folder.

One JSON line per run. From them come the runtime's own memory on this machine and how far
predictions are off. Nothing here may stop an answer: an unwritable folder is no error.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from vidqa.config import state_folder
from vidqa.types import Device
from vidqa.utils.atomic_write import write_whole

_KEPT_RUNS = 500


def _journal() -> Path:
    return state_folder() / "memory.jsonl"


def remember(device: Device, model: str, weights: str, predicted: int, measured: int, runtime: int | None) -> None:
    """Append one run, in bytes of the process on CUDA, else of its tensors; the oldest go when there are too many."""
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
        path = _journal()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [*lines[-(_KEPT_RUNS - 1) :], json.dumps(row)]
        write_whole(path, "\n".join(kept) + "\n")


def runs() -> Iterator[dict[str, Any]]:
    """Past runs, the oldest first; lines that cannot be read or compared are passed over."""
    try:
        lines = _journal().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and {"device", "predicted_bytes", "measured_bytes"} <= row.keys() and _alike(row):
                yield row


def _alike(row: dict[str, Any]) -> bool:
    """Whether the plan of a run decides what was measured: the process on CUDA, only tensors elsewhere."""
    return str(row["device"]).startswith("cuda") or row.get("of") == "tensors"


def measured_runtime(device: Device) -> int | None:
    """The largest of the last runtimes' own bytes seen on this device, or None."""
    seen = [row["runtime_bytes"] for row in runs() if row["device"] == _key(device) and row.get("runtime_bytes")]
    return max(seen[-20:]) if seen else None


def summary() -> tuple[int, float] | None:
    """Number of runs, and the median of measured over predicted; None before the first."""
    ratios = [row["measured_bytes"] / row["predicted_bytes"] for row in runs() if row["predicted_bytes"]]
    return (len(ratios), median(ratios)) if ratios else None


def _key(device: Device) -> str:
    return f"{device.kind}:{device.name}"
