"""Renders a checkpoint's chat template in a process with limits in time, memory and output.

The process (models/template_worker.py) is started while the model loads and renders every prompt.
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
_REPLY_SECONDS = 30.0  # the process exits after 3 s of rendering; the rest is for its start on a busy machine
_POLL_SECONDS = 0.05  # between checks for cancellation
_MAX_CHARACTERS = 2**20  # of a prompt, beyond four times its messages
_INHERITED = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "TMPDIR")
_REMEDY = "Use the chat template of the model's *instruct* release."


class ChatTemplate:
    """A template and the special tokens it may name; `source` says where it was read, for errors.

    `start`, or the first prompt, starts its process, which ends with this object.
    """

    def __init__(self, template: str, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template, self._source, self._special_tokens = template, source, special_tokens
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process without waiting for it."""
        self._process = process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=_environment(),
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, process)

    def render(self, messages: Sequence[Mapping[str, Any]], is_cancelled: Callable[[], bool] = never) -> str:
        """Return a conversation's prompt as transformers' apply_chat_template renders it, ready for the model's turn.

        Raise ModelError if the template fails or exceeds its limits, Interrupted soon after `is_cancelled` is true.
        """
        values = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        limit = _MAX_CHARACTERS + 4 * len(json.dumps(values))
        command = {"template": self._template, "values": values | dict(self._special_tokens), "max_characters": limit}
        try:
            return self._reply(json.dumps(command).encode() + b"\n", is_cancelled)
        except BaseException:
            self.close()  # its reply may still come
            raise

    def close(self) -> None:
        """End the process; another prompt starts a new one."""
        if self._process is not None:
            self._end()

    def _reply(self, command: bytes, is_cancelled: Callable[[], bool]) -> str:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        until = time.monotonic() + _REPLY_SECONDS
        try:
            _write(process.stdin.fileno(), command, until, is_cancelled)
            length = int.from_bytes(_read(process.stdout.fileno(), 4, until, is_cancelled), "big")
            reply = json.loads(_read(process.stdout.fileno(), length, until, is_cancelled))
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            raise self._failed("it takes too long or too much memory") from error
        if "error" in reply:
            raise self._failed(reply["error"])
        return str(reply["text"])

    def _failed(self, why: str) -> ModelError:
        return ModelError(f"{self._source}: the chat template cannot be rendered: {why.rstrip('.')}.", _REMEDY)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and wait for it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _write(descriptor: int, data: bytes, until: float, is_cancelled: Callable[[], bool]) -> None:
    left = memoryview(data)
    while left:
        _wait([], [descriptor], until, is_cancelled)
        left = left[
            os.write(descriptor, left[: select.PIPE_BUF]) :
        ]  # a pipe that is ready takes so much without blocking


def _read(descriptor: int, count: int, until: float, is_cancelled: Callable[[], bool]) -> bytes:
    data = bytearray()
    while len(data) < count:
        _wait([descriptor], [], until, is_cancelled)
        piece = os.read(descriptor, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _wait(readable: list[int], writable: list[int], until: float, is_cancelled: Callable[[], bool]) -> None:
    """Wait until a pipe is ready; raise TimeoutError at the deadline, Interrupted if cancelled."""
    while (seconds := until - time.monotonic()) > 0:
        if any(select.select(readable, writable, [], min(seconds, _POLL_SECONDS))):
            return
        if is_cancelled():
            raise Interrupted("Stopped while the prompt was made.", "Nothing was answered yet.")
    raise TimeoutError


def _environment() -> dict[str, str]:
    """Return what Python needs to find jinja2, and nothing more: no token, no proxy."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])}
