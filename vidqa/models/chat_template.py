"""ChatTemplate: a checkpoint's chat template, rendered in a process with limits in time, memory and output.

The process (models/template_worker.py) is started while the model loads and serves every prompt. Knows pipes and
deadlines; knows no jinja2.
"""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidqa.errors import Interrupted, ModelError
from vidqa.video.reader import never

_COMMAND = (sys.executable, "-S", "-P", "-m", "vidqa.models.template_worker")
_REPLY_SECONDS = 30.0  # the process ends itself after 3 s of rendering; the rest is for its start on a busy machine
_LOOK_SECONDS = 0.05  # how often is looked whether to stop
_MOST_CHARACTERS = 2**20  # of a prompt, beyond four times the texts that are put in it
_PASSED_ON = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "TMPDIR")
_REMEDY = "Use the chat template of the model's *instruct* release."


class ChatTemplate:
    """A template and the tokens it may name. `source` says where it was read, for errors.

    Its process is started by `start`, or by the first prompt, and ends with this object.
    """

    def __init__(self, template: str, source: str, special: Mapping[str, str]) -> None:
        self._template, self._source, self._special = template, source, dict(special)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, without waiting for it."""
        self._process = process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=_environment(),
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, process)

    def render(self, messages: Sequence[Mapping[str, Any]], stopped: Callable[[], bool] = never) -> str:
        """The prompt of a conversation, ready for the model's turn, as transformers' apply_chat_template renders it.

        Raises ModelError where the template fails or goes beyond its limits, Interrupted soon after `stopped` says so.
        """
        values = {
            "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **self._special,
        }  # fmt: skip
        texts = json.dumps(values)
        command = {"template": self._template, "values": values, "most_characters": _MOST_CHARACTERS + 4 * len(texts)}
        try:
            return self._reply(json.dumps(command).encode() + b"\n", stopped)
        except BaseException:
            self.close()  # a reply may be on its way
            raise

    def close(self) -> None:
        """End the process; another prompt would start a new one."""
        if self._process is not None:
            self._end()

    def _reply(self, command: bytes, stopped: Callable[[], bool]) -> str:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        until = time.monotonic() + _REPLY_SECONDS
        try:
            _write(process.stdin.fileno(), command, until, stopped)
            length = int.from_bytes(_read(process.stdout.fileno(), 4, until, stopped), "big")
            reply = json.loads(_read(process.stdout.fileno(), length, until, stopped))
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            raise self._failed("it takes too long or too much memory") from error
        if "error" in reply:
            raise self._failed(reply["error"])
        return str(reply["text"])

    def _failed(self, why: str) -> ModelError:
        return ModelError(f"{self._source}: the chat template cannot be rendered: {why.rstrip('.')}.", _REMEDY)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and collect it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _write(descriptor: int, data: bytes, until: float, stopped: Callable[[], bool]) -> None:
    left = memoryview(data)
    while left:
        _wait([], [descriptor], until, stopped)
        left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]  # so much is taken without waiting


def _read(descriptor: int, count: int, until: float, stopped: Callable[[], bool]) -> bytes:
    data = bytearray()
    while len(data) < count:
        _wait([descriptor], [], until, stopped)
        piece = os.read(descriptor, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _wait(readable: list[int], writable: list[int], until: float, stopped: Callable[[], bool]) -> None:
    """Until a pipe is ready; raises TimeoutError at the deadline, and Interrupted where it is to stop."""
    while (left := until - time.monotonic()) > 0:
        if any(select.select(readable, writable, [], min(left, _LOOK_SECONDS))):
            return
        if stopped():
            raise Interrupted("Stopped while the prompt was made.", "Nothing was answered yet.")
    raise TimeoutError


def _environment() -> dict[str, str]:
    """What Python needs to find jinja2 where this process finds it, and nothing more: no token, no proxy."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])}
