"""The worker process of one GPU, `python -m vidqa.batch.gpu_worker`; speaks JSON Lines over its pipes.

The first line on stdin has the captioner's settings, each further one a clip; the end of stdin means: finish. On
stdout it writes `ready` when it accepts clips, a `record` for every clip, and an `error` if it cannot go on.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from vidqa.batch.clip_record import Captioner, PendingClip, pending_from, record_object
from vidqa.errors import VidqaError

MAKE_CAPTIONER = "vidqa.batch.captioner:make_captioner"
_PR_SET_PDEATHSIG = 1


def serve(lines: BinaryIO, out: BinaryIO, factory: str) -> int:
    """Caption clips from `lines` until they end; returns the exit code. `factory` is `module:function`, trusted."""
    module, _, function = factory.partition(":")
    try:
        captioner: Captioner = getattr(import_module(module), function)(json.loads(lines.readline()))
        _send(out, {"ready": True})
        inbox = _Inbox(lines, captioner)
        for group in inbox.groups():
            for record in captioner.captions(group):
                _send(out, {"record": record_object(record)})
        captioner.close()
    except VidqaError as error:
        _send(out, {"error": type(error).__name__, "what": error.what, "remedy": error.remedy})
        return 1
    return 0


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


class _Inbox:
    """Received clips, in groups of what is there. A captioner that waited for more would hold back an incomplete
    batch, while the parent waits for a record before it sends more.
    """

    def __init__(self, lines: BinaryIO, captioner: Captioner) -> None:
        self._clips: SimpleQueue[PendingClip | None] = SimpleQueue()
        Thread(target=self._receive, args=(lines, captioner), daemon=True).start()

    def groups(self) -> Iterator[Iterator[PendingClip]]:
        """Yield groups, waiting for each one's first clip."""
        while (first := self._clips.get()) is not None:
            yield self._group(first)

    def _group(self, first: PendingClip) -> Iterator[PendingClip]:
        yield first
        with suppress(Empty):
            while (clip := self._clips.get_nowait()) is not None:
                yield clip
            self._clips.put(None)

    def _receive(self, lines: BinaryIO, captioner: Captioner) -> None:
        for line in lines:
            self._clips.put(pending_from(json.loads(line)))
        captioner.finish()
        with suppress(Empty):
            while True:
                self._clips.get_nowait()
        self._clips.put(None)


def _isolate() -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the parent; on Linux, die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # child processes would inherit SIG_IGN
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Serve the parent; what native libraries print to stdout goes to stderr."""
    _isolate()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        # Not sys.stdin: at exit Python would wait for its lock, which the receiving thread holds.
        return serve(os.fdopen(os.dup(0), "rb"), out, (*sys.argv[1:], MAKE_CAPTIONER)[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
