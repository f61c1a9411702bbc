"""Plans and decodes mutated clips without a model: `python -m tests.video.fuzz SEED FIRST COUNT`.

Opens them as `caption` does: isolated, with a decoding process that goes on to the next file. Runs in a separate
process, to measure its memory. Prints a JSON line per mutant; each is made from the seed and its number alone.
`processor_seconds` are those of this process and its decoder, which other load does not change.
"""

import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from tests.video.mutants import mutant, whole_clips
from vidqa.config import EngineConfig
from vidqa.engine.session import Session
from vidqa.errors import VideoError
from vidqa.types import Request
from vidqa.video.decoder_pool import ReusedDecoder
from vidqa.video.reader import Decoding, VideoReader, never

CONFIG = EngineConfig(model="demo", device="cpu")
DECODING = Decoding(deadline_seconds=30.0, clip_deadline_seconds=30.0)
_CLEAR_PEAK = "5"  # proc(5), clear_refs: VmHWM begins anew


class ReusedReader(VideoReader):
    """A reader whose decoder goes on to the next file."""

    def close(self) -> None:
        """Leave the file to the decoder, which closes it when it opens another one."""


class FuzzSession:
    """A session that opens its videos with one decoding process after the other, and the peaks of their memory."""

    def __init__(self) -> None:
        self._decoder = ReusedDecoder(DECODING, never)
        self.session = Session(CONFIG, opener=self._open)

    def _open(self, request: Request, stopped: Callable[[], bool]) -> VideoReader:
        return ReusedReader(*self._decoder.open(request.video))

    def ask(self, path: Path) -> tuple[str, str]:
        """Open, plan, decode and resize: the kind of the end, and its message."""
        try:
            _, frames = self.session.see(Request(str(path), "what happens?", frames=4))
        except VideoError as error:
            assert error.what and error.remedy
            return type(error).__name__, error.what
        except Exception:
            return "unexpected", traceback.format_exc()
        return ("frames" if frames else "nothing"), ""

    @property
    def decoder(self) -> int:
        """The id of the decoding process; 0 if there is none."""
        worker = self._decoder._process
        return 0 if worker is None else worker._process.pid

    def close(self) -> None:
        """End session and decoder."""
        self.session.close()
        self._decoder.close()


def outcomes(seed: int, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Ask about `count` mutants, the first of which has the number `first`."""
    with tempfile.TemporaryDirectory() as made, closing(FuzzSession()) as asking:
        folder = Path(made)
        wholes = whole_clips(folder)
        for extension, data in wholes.items():  # what is imported on the way counts for no mutant
            path = folder / f"clip.{extension}"
            path.write_bytes(data)
            assert (end := asking.ask(path)) == ("frames", ""), (extension, *end)
        for number in range(first, first + count):
            draw = random.Random(f"{seed} {number}")
            extension = draw.choice(sorted(wholes))
            path = folder / f"mutant.{extension}"
            path.write_bytes(mutant(draw, wholes[extension], wholes[draw.choice(sorted(wholes))]))
            yield _measured(asking, path, number)


def _measured(asking: FuzzSession, path: Path, number: int) -> dict[str, Any]:
    before = asking.decoder
    memory, _ = _peak_bytes("self", begin=True), _peak_bytes(before, begin=True)
    decoding, processor, began = _processor_seconds(before), time.process_time(), time.monotonic()
    end, what = asking.ask(path)
    seconds, processor, after = time.monotonic() - began, time.process_time() - processor, asking.decoder
    processor += _processor_seconds(after) - (decoding if after == before else 0.0)
    grown = _peak_bytes("self") - memory
    return {
        "number": number, "extension": path.suffix[1:], "end": end, "what": what, "seconds": seconds,
        "processor_seconds": processor, "grown_bytes": grown, "decoder_bytes": _peak_bytes(after),
    }  # fmt: skip


def _peak_bytes(process: int | str, *, begin: bool = False) -> int:
    """The most memory that a process had resident; 0 if it has ended."""
    try:
        if begin:
            Path(f"/proc/{process}/clear_refs").write_text(_CLEAR_PEAK)
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _processor_seconds(process: int) -> float:
    """What a process has used so far; 0 if it has ended."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def main() -> None:
    """Print the outcomes."""
    for outcome in outcomes(*map(int, sys.argv[1:4])):
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
