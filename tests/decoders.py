"""Scripted decoder processes that die, hang or are slow: the real worker with replaced functions."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_SCRIPT = """
import os, signal, time
from vidqa.video import decoder_worker as worker

opened = 0
true_open, true_frames = worker._open, worker._send_frames

def fail(name, when):
    if "die_" + when in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang_" + when in name:
        time.sleep(600)

def scripted_open(path, out, *how):
    global opened, name
    opened, name = opened + 1, os.path.basename(path)
    with open({log!r}, "a") as log:
        log.write(f"{{os.getpid()}} {{name}}\\n")
    if opened == {dies_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    fail(name, "open")
    return true_open(path, out, *how)

def scripted_frames(source, path, indices, out):
    fail(name, "frames")
    if "slow_frames" in name:
        indices = list(indices)
        for place, index in enumerate(indices):
            time.sleep(0.2)
            frame = next(iter(source.frames([index])))
            header = {{"index": index, "seconds": frame.timestamp_seconds, "shape": frame.rgb.shape[:2]}}
            worker.send(out, header, frame.rgb.data.cast("B"))
        worker.send(out, {{"end": ""}})
        return
    true_frames(source, path, indices, out)

worker._open, worker._send_frames = scripted_open, scripted_frames
worker.main()
"""


def scripted_decoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, dies_at: int = 0
) -> Callable[[], list[tuple[int, str]]]:
    """Let decoders die or hang as a file's name says (`die_open`, `hang_frames`, ...), or at their n-th file.

    `slow_frames` gives a frame every 0.2 s. The returned function lists (process, file) of every opening so far.
    """
    script, log = folder / "decoder.py", folder / "opened.log"
    script.write_text(_SCRIPT.format(log=str(log), dies_at=dies_at))
    monkeypatch.setattr("vidqa.video.reader._COMMAND", (sys.executable, str(script)))

    def opened() -> list[tuple[int, str]]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    return opened
