"""Asks about mutated clips as `ask` does, without a model's weights: `python -m tests.video.fuzz SEED FIRST COUNT`.

A process of its own, so that its memory is the mutants' alone. Prints a JSON line per mutant.
Each mutant is made from the seed and its number, and can be made again alone.
"""

import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.video.mutants import mutant, whole_clips
from vidqa.config import EngineConfig
from vidqa.engine.session import Session
from vidqa.errors import VideoError
from vidqa.types import Request
from vidqa.video import decode
from vidqa.video.decode import Worker

CONFIG = EngineConfig(model="demo", device="cpu", decoder_deadline_seconds=30.0, clip_deadline_seconds=30.0)
_CLEAR_PEAK = "5"  # proc(5), clear_refs: VmHWM begins anew


@dataclass(frozen=True, slots=True)
class Outcome:
    """How asking about one mutant ended. Bytes at their peak: what the asking process grew by, what the decoder took.

    `processor_seconds` are those of the asking process and its decoder, which other load does not change.
    """

    number: int
    extension: str
    end: str
    what: str
    seconds: float
    processor_seconds: float
    grown_bytes: int
    decoder_bytes: int


class WatchedWorker(Worker):
    """A decoding process whose peak of memory is read before it is ended."""

    peak_bytes = 0

    def close(self) -> None:
        """Read the peak; 0 where the process is gone already."""
        with suppress(OSError, StopIteration):
            WatchedWorker.peak_bytes = max(WatchedWorker.peak_bytes, _peak_bytes(str(self._process.pid)))
        super().close()


def outcomes(seed: int, first: int, count: int) -> Iterator[Outcome]:
    """Ask about `count` mutants, the first of which has the number `first`."""
    decode.Worker = WatchedWorker  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as made, Session(CONFIG) as session:
        folder = Path(made)
        wholes = whole_clips(folder)
        for extension, data in wholes.items():  # what is imported on the way counts for no mutant
            path = folder / f"clip.{extension}"
            path.write_bytes(data)
            assert _ask(session, path) == ("frames", "")
        for number in range(first, first + count):
            draw = random.Random(f"{seed} {number}")
            extension = draw.choice(sorted(wholes))
            path = folder / f"mutant.{extension}"
            path.write_bytes(mutant(draw, wholes[extension], wholes[draw.choice(sorted(wholes))]))
            yield _measured(session, path, number)


def _measured(session: Session, path: Path, number: int) -> Outcome:
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    WatchedWorker.peak_bytes = 0
    memory, processor, began = _peak_bytes(), _processor_seconds(), time.monotonic()
    end, what = _ask(session, path)
    return Outcome(
        number, path.suffix[1:], end, what, time.monotonic() - began, _processor_seconds() - processor,
        _peak_bytes() - memory, WatchedWorker.peak_bytes,
    )  # fmt: skip


def _ask(session: Session, path: Path) -> tuple[str, str]:
    """Open, plan, decode and resize: the kind of the end, and what was told."""
    try:
        _, frames = session.see(Request(str(path), "what happens?", frames=6))
    except VideoError as error:
        assert error.what and error.remedy
        return type(error).__name__, error.what
    except Exception:
        return "unexpected", traceback.format_exc()
    return ("frames" if frames else "nothing"), ""


def _peak_bytes(process: str = "self") -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _processor_seconds() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def main() -> None:
    """Print the outcomes."""
    for outcome in outcomes(*map(int, sys.argv[1:4])):
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
