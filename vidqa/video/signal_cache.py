"""Change signals that were found before: the latest in memory, and by content in the user's state folder.

`scans/` has a file per video, of which the latest are kept. A folder that cannot be written is no error, and a damaged
file is one that is not there.
"""

import contextlib
import json
import math
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from vidqa.config import state_folder
from vidqa.errors import VideoError
from vidqa.types import Request
from vidqa.utils.atomic_write import write_whole
from vidqa.utils.content_hash import content_id, hash_of
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.picture_folder import file_identity, timestamps_file

_FOLDER, _VERSION = "scans", 1  # a new version for another way of scanning
_MOST_FILES = 64
_MOST_SIGNALS, _MOST_NUMBERS = 128, 2_000_000  # in memory
_LONGER = 2.0  # a scan that was cut short is repeated where there is this much more time than it had

_Key = tuple[object, ...]


class SignalCache:
    """Signals by video, stream and picture times; callable from any thread."""

    def __init__(self) -> None:
        self._signals: OrderedDict[_Key, tuple[ChangeSignal, float]] = OrderedDict()
        self._lock = Lock()

    def find(self, request: Request, limit_seconds: float = 0.0, *, on_disk: bool) -> ChangeSignal | None:
        """Return the signal of a request's video; None if it is unknown or was cut short by far less time."""
        with contextlib.suppress(OSError, VideoError, ValueError):
            key = _identity(request)
            with self._lock:
                found = self._signals.get(key)
            if found is None and on_disk and (found := _read(_path(request))) is not None:
                self._keep(key, *found)
            if found is not None and (found[0].complete or limit_seconds <= _LONGER * found[1]):
                return found[0]
        return None

    def store(self, request: Request, signal: ChangeSignal, limit_seconds: float, *, on_disk: bool) -> None:
        """Keep a signal that a scan of at most `limit_seconds` found."""
        with contextlib.suppress(OSError, VideoError, ValueError):
            self._keep(_identity(request), signal, limit_seconds)
            if on_disk:
                _write(_path(request), signal, limit_seconds)

    def _keep(self, key: _Key, signal: ChangeSignal, limit_seconds: float) -> None:
        with self._lock:
            self._signals[key] = (signal, limit_seconds)
            self._signals.move_to_end(key)
            numbers = sum(2 * len(one.seconds) for one, _ in self._signals.values())
            while len(self._signals) > 1 and (len(self._signals) > _MOST_SIGNALS or numbers > _MOST_NUMBERS):
                _, (oldest, _) = self._signals.popitem(last=False)
                numbers -= 2 * len(oldest.seconds)


SIGNALS = SignalCache()  # of this process: sessions and captioners share it


def _identity(request: Request) -> _Key:
    times = timestamps_file(request.video, request.timestamps) if os.path.isdir(request.video) else None
    identity = file_identity(request.video) + (file_identity(times) if times else ())
    return (os.path.realpath(request.video), *identity, request.stream, request.picture_fps)


def _path(request: Request) -> Path:
    """Return the file of a video's signal, by the video's content; of a folder, by its pictures' names and times."""
    parts = [str(_VERSION), str(request.stream), str(request.picture_fps)]
    if os.path.isdir(request.video):
        parts += map(str, _identity(request))
    else:
        parts.append(content_id(request.video))
    return state_folder() / _FOLDER / f"{hash_of(*parts)}.json"


def _write(path: Path, signal: ChangeSignal, limit_seconds: float) -> None:
    values = {
        "limit_s": limit_seconds, "complete": signal.complete, "seconds": signal.seconds, "change": signal.change,
        "cuts": signal.cuts,
    }  # fmt: skip
    write_whole(path, json.dumps(values, separators=(",", ":")) + "\n")
    files = sorted(path.parent.glob("*.json"), key=os.path.getmtime)
    for old in files[:-_MOST_FILES]:
        old.unlink(missing_ok=True)


def _read(path: Path) -> tuple[ChangeSignal, float] | None:
    """Return a stored signal and the limit of its scan; None if there is none or its file is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        seconds, change, cuts = (_numbers(values[name]) for name in ("seconds", "change", "cuts"))
        (limit,) = _numbers([values["limit_s"]])
        complete = values["complete"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    usual = len(seconds) == len(change) and list(seconds) == sorted(seconds) and isinstance(complete, bool)
    usual = usual and max(change, default=0.0) <= 1 and (bool(seconds) or not complete)
    return (ChangeSignal(seconds, change, cuts, complete), limit) if usual else None


def _numbers(values: Any) -> tuple[float, ...]:
    """Return a list of finite numbers of 0 or more as floats; raises ValueError for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(values)
    numbers = tuple(map(float, values))
    if not all(0 <= number < math.inf for number in numbers):
        raise ValueError(values)
    return numbers
