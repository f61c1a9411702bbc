"""A subprocess that exchanges lines of JSON over its pipes, with the threads that read them."""

import json
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from typing import IO, Any

from vidqa.utils.safe_text import safe_line

_MAX_LINE_BYTES = 2**24
_STDERR_BYTES = 4000


class WorkerProcess:
    """A running worker. `on_line` is called in a thread with each line of stdout, and with b"" at its end."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[bytes], None]
    ) -> None:
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._stderr = b""
        self._readers = (
            Thread(target=self._read_stdout, args=(self._popen.stdout, on_line), daemon=True),
            Thread(target=self._read_stderr, args=(self._popen.stderr,), daemon=True),
        )
        for reader in self._readers:
            reader.start()

    def write(self, message: Mapping[str, Any]) -> None:
        """Send one line; nothing happens if the process is gone, as the end of its stdout reports that."""
        assert self._popen.stdin is not None
        with suppress(OSError, ValueError):
            self._popen.stdin.write(json.dumps(message).encode() + b"\n")
            self._popen.stdin.flush()

    def close_input(self) -> None:
        """Close its stdin, after which the worker ends."""
        assert self._popen.stdin is not None
        with suppress(OSError):
            self._popen.stdin.close()

    def kill(self) -> None:
        """Kill it; callable from any thread."""
        self._popen.kill()

    def wait(self, timeout_seconds: float) -> str:
        """Wait for its end, killing it after the timeout; returns how it ended, with the last line of stderr."""
        try:
            self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        code = self._popen.wait()
        self.close_input()
        for reader in self._readers:
            reader.join(1.0)  # its child processes may hold the pipes open for longer
        reason = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        lines = [line for line in self._stderr.decode(errors="replace").splitlines() if line.strip()]
        return f"{reason} after it printed: {safe_line(lines[-1].strip())}" if lines else reason

    def _read_stdout(self, pipe: IO[bytes], on_line: Callable[[bytes], None]) -> None:
        with pipe:
            for line in iter(lambda: pipe.readline(_MAX_LINE_BYTES), b""):
                on_line(line)
        on_line(b"")

    def _read_stderr(self, pipe: IO[bytes]) -> None:
        """Keep the end of what it prints."""
        with pipe:
            while data := pipe.read1(_STDERR_BYTES):  # type: ignore[attr-defined]
                self._stderr = (self._stderr + data)[-_STDERR_BYTES:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
