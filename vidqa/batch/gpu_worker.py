"""The process of one GPU: `python -m vidqa.batch.gpu_worker`, spoken to over its pipes in lines of JSON.

The first line on stdin is the settings, each further one a clip; a stdin that closes means: finish. On stdout it says
`ready` when the model is loaded, then a `record` for every clip; an `error` says why it cannot go on. It sees the GPU
that its environment shows it, and knows neither journal nor output.
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

from vidqa.batch.clip_record import Captioner, Clip, Pending, record_object
from vidqa.errors import VidqaError

MAKE_CAPTIONER = "vidqa.batch.captioner_config:make_captioner"
_PR_SET_PDEATHSIG = 1


def pending_from(values: dict[str, Any]) -> Pending:
    """The clip of an object that `asdict` made; raises KeyError or TypeError where it is none."""
    return Pending(**(values | {"clip": Clip(**values["clip"])}))


def named_function(name: str) -> Any:
    """What `module:function` names, imported now; whoever runs it must trust the name."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def serve(lines: BinaryIO, out: BinaryIO, maker: str) -> int:
    """Caption what stdin names until it ends; returns the exit code."""
    try:
        captioner: Captioner = named_function(maker)(json.loads(lines.readline()))
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
    """Clips as they come in, in groups that never make the captioner wait: it would sit on a batch that is not full,
    while the parent waits for a record before it hands out more.
    """

    def __init__(self, lines: BinaryIO, captioner: Captioner) -> None:
        self._clips: SimpleQueue[Pending | None] = SimpleQueue()
        Thread(target=self._receive, args=(lines, captioner), daemon=True).start()

    def groups(self) -> Iterator[Iterator[Pending]]:
        """What there is, as often as there is something."""
        while (first := self._clips.get()) is not None:
            yield self._group(first)

    def _group(self, first: Pending) -> Iterator[Pending]:
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


def _confine() -> None:
    """Let the parent decide about Ctrl-C and SIGTERM, which reach a whole group of processes, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # not ignored: the processes that this one starts would inherit it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Serve the parent; native libraries that print go to stderr, never into the messages."""
    _confine()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        # A reader of its own: Python's end would wait for the lock of stdin's, which a thread still reads.
        return serve(os.fdopen(os.dup(0), "rb"), out, (*sys.argv[1:], MAKE_CAPTIONER)[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
