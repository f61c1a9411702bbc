"""The decoder process, `python -m vidqa.video.decoder_worker`: a file that crashes FFmpeg ends this process alone.

Reads one JSON command a line from stdin. Answers on stdout with messages of a four-byte length, a JSON header and
`payload_bytes` of raw data.
"""

import array
import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from importlib import import_module
from queue import Queue
from threading import Thread
from typing import Any, BinaryIO

from vidqa.errors import VideoError
from vidqa.types import NO_TIMES, Frame, PictureTimes
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.open import Source, open_in_process
from vidqa.video.size_limits import limited_allocation
from vidqa.video.subtitle_files import OFF

_PR_SET_PDEATHSIG = 1
_QUEUED_FRAMES = 2
_PROGRESS_SECONDS = 0.1
_LARGE_FRAME_BYTES = 32 * 2**20  # the next frame is decoded only after such a one is sent


def send(out: BinaryIO, header: dict[str, Any], payload: memoryview | bytes = b"") -> None:
    """Write one message."""
    header["payload_bytes"] = len(payload)
    encoded = json.dumps(header).encode()
    out.write(len(encoded).to_bytes(4, "big") + encoded)
    out.write(payload)
    out.flush()


def serve(commands: BinaryIO, out: BinaryIO) -> None:
    """Execute `open`, `scan` and `frames` commands until stdin ends."""
    source: Source | None = None
    path = ""
    for line in commands:
        command = json.loads(line)
        try:
            if "open" in command:
                path = command["open"]
                if source is not None:
                    source.close()
                    source = None  # nothing is open if opening fails
                gc.collect()  # frees PyAV's threads and buffers, which would count as this file's memory
                pictures = PictureTimes(*command.get("pictures", ()))
                source = _open(path, out, command.get("stream"), pictures, command.get("subs", OFF))
            elif source is not None and "scan" in command:
                _send_signal(source, path, command["scan"], out)
            elif source is not None:
                _send_frames(source, path, command["frames"], out)
        except VideoError as error:
            send(out, {"error": type(error).__name__, "what": error.what, "remedy": error.remedy})


def _open(
    path: str, out: BinaryIO, stream: int | None = None, pictures: PictureTimes = NO_TIMES, subs: str = OFF
) -> Source:
    with limited_allocation(path):
        info, source = open_in_process(path, stream, pictures, subs)
    # asdict would copy every time of `pts_seconds`.
    header = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "pts_seconds"}
    if info.subtitles is not None:
        header["subtitles"] = asdict(info.subtitles)
    send(out, {"info": header}, array.array("d", info.pts_seconds).tobytes())
    import_module("numpy")  # now, while the parent plans; without memory it would exit later
    return source


def _send_frames(source: Source, path: str, indices: Sequence[int], out: BinaryIO) -> None:
    """Send frames in a thread while the next ones are decoded: the pipe holds less than one frame."""
    queue: Queue[Frame | None] = Queue(maxsize=_QUEUED_FRAMES)
    writer = Thread(target=_write_frames, args=(queue, out), daemon=True)
    writer.start()
    try:
        with limited_allocation(path):
            for frame in source.frames(indices):
                queue.put(frame)
                if frame.rgb.nbytes > _LARGE_FRAME_BYTES:
                    del frame
                    queue.join()
    finally:  # an error follows the frames that came before it
        queue.put(None)
        writer.join()
    send(out, {"end": source.stopped})


def _send_signal(source: Source, path: str, limit_seconds: float, out: BinaryIO) -> None:
    """Send the progress of a scan ten times a second, then its signal."""
    scan, sent = source.scan(limit_seconds), -_PROGRESS_SECONDS
    with limited_allocation(path):
        while True:
            try:
                done, total = next(scan)
            except StopIteration as end:
                signal_found: ChangeSignal = end.value
                break
            if time.monotonic() - sent >= _PROGRESS_SECONDS:
                sent = time.monotonic()
                send(out, {"done": done, "total": total})
    parts = (signal_found.seconds, signal_found.change, signal_found.cuts)
    header = {"lengths": [len(part) for part in parts], "complete": signal_found.complete}
    send(out, header, b"".join(array.array("d", part).tobytes() for part in parts))


def _write_frames(queue: "Queue[Frame | None]", out: BinaryIO) -> None:
    while (frame := queue.get()) is not None:
        header = {
            "index": frame.index,
            "seconds": frame.timestamp_seconds,
            "shape": frame.rgb.shape[:2],
            "note": frame.note,
        }
        try:
            send(out, header, frame.rgb.data.cast("B"))
        except BrokenPipeError:  # the parent has ended
            os._exit(0)
        del frame  # freed while waiting for the next one
        queue.task_done()


def _confine() -> None:
    """Ignore Ctrl-C, which the parent handles, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve the parent; what native libraries print goes to stderr instead of into the messages."""
    _confine()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, out)


if __name__ == "__main__":
    main()
