"""The process that touches FFmpeg: `python -m vidqa.video.decoder_worker`, spoken to over its pipes.

Reads one JSON command a line from stdin; answers on stdout with messages of a four-byte
length, a JSON header and, where the header says so, `payload_bytes` of raw data. A file
that crashes or hangs FFmpeg takes this process down and nothing else. Knows no torch.
"""

import array
import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, BinaryIO

from vidqa.errors import VideoError
from vidqa.types import NO_TIMES, Frame, PictureTimes
from vidqa.video.memory_limit import limited_allocation
from vidqa.video.open import open_here

if TYPE_CHECKING:
    from vidqa.video.reader import Source

_PR_SET_PDEATHSIG = 1
_FRAMES_AHEAD = 2
_LARGE_FRAME_BYTES = 32 * 2**20  # of which none is decoded while another one waits


def send(out: BinaryIO, header: dict[str, Any], payload: memoryview | bytes = b"") -> None:
    """Write one message."""
    header["payload_bytes"] = len(payload)
    encoded = json.dumps(header).encode()
    out.write(len(encoded).to_bytes(4, "big") + encoded)
    out.write(payload)
    out.flush()


def serve(commands: BinaryIO, out: BinaryIO) -> None:
    """Obey `open` and `frames` commands until stdin ends."""
    source: Source | None = None
    path = ""
    for line in commands:
        command = json.loads(line)
        try:
            if "open" in command:
                path = command["open"]
                if source is not None:
                    source.close()
                    source = None  # what fails to open leaves nothing open
                gc.collect()  # of a cycle: PyAV's threads and buffers, which would count against this file
                pictures = PictureTimes(*command.get("pictures", ()))
                source = _open(path, out, command.get("stream"), pictures)
            elif source is not None:
                _send_frames(source, path, command["frames"], out)
        except VideoError as error:
            send(out, {"error": type(error).__name__, "what": error.what, "remedy": error.remedy})


def _open(path: str, out: BinaryIO, stream: int | None = None, pictures: PictureTimes = NO_TIMES) -> "Source":
    with limited_allocation(path):
        info, source = open_here(path, stream, pictures)
    # Not asdict: it copies every single time.
    header = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "pts_seconds"}
    send(out, {"info": header}, array.array("d", info.pts_seconds).tobytes())
    import_module("numpy")  # for the pictures, while the parent plans; its library exits where it finds no memory
    return source


def _send_frames(source: "Source", path: str, indices: Sequence[int], out: BinaryIO) -> None:
    """Send frames while the next ones are decoded: the pipe holds less than one frame."""
    ahead: Queue[Frame | None] = Queue(maxsize=_FRAMES_AHEAD)
    writer = Thread(target=_write_frames, args=(ahead, out), daemon=True)
    writer.start()
    try:
        with limited_allocation(path):
            for frame in source.frames(indices):
                ahead.put(frame)
                if frame.rgb.nbytes > _LARGE_FRAME_BYTES:
                    del frame
                    ahead.join()
    finally:  # an error follows the frames that came before it
        ahead.put(None)
        writer.join()
    send(out, {"end": source.stopped})


def _write_frames(ahead: "Queue[Frame | None]", out: BinaryIO) -> None:
    while (frame := ahead.get()) is not None:
        header = {
            "index": frame.index,
            "seconds": frame.timestamp_seconds,
            "shape": frame.rgb.shape[:2],
            "note": frame.note,
        }
        try:
            send(out, header, frame.rgb.data.cast("B"))
        except BrokenPipeError:  # the parent left: there is nobody to decode for
            os._exit(0)
        del frame  # not held while the next one is waited for
        ahead.task_done()


def _confine() -> None:
    """Let the parent decide about Ctrl-C, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve the parent; native libraries that print go to stderr, never into the messages."""
    _confine()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, out)


if __name__ == "__main__":
    main()
