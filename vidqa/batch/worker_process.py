"""One life of a worker: its pipes, the threads that read them, and how it ended. Knows lines of bytes and no clips."""

import json
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from typing import IO, Any

from vidqa.utils.safe_text import safe_line

_MOST_LINE_BYTES = 2**24
_TAIL_BYTES = 4000


class WorkerProcess:
    """A process that is spoken to in lines of JSON. `hear` gets its lines, in a thread, and b"" when it is over."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], hear: Callable[[bytes], None]) -> None:
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._said = b""
        self._readers = (
            Thread(target=self._read, args=(self._popen.stdout, hear), daemon=True),
            Thread(target=self._keep, args=(self._popen.stderr,), daemon=True),
        )
        for reader in self._readers:
            reader.start()

    def write(self, message: Mapping[str, Any]) -> None:
        """Say one line; a process that is gone is noticed by its end, not here."""
        assert self._popen.stdin is not None
        with suppress(OSError, ValueError):
            self._popen.stdin.write(json.dumps(message).encode() + b"\n")
            self._popen.stdin.flush()

    def close_input(self) -> None:
        """Say that no more comes."""
        assert self._popen.stdin is not None
        with suppress(OSError):
            self._popen.stdin.close()

    def kill(self) -> None:
        """End it now; callable from any thread."""
        self._popen.kill()

    def end(self, patience_seconds: float) -> str:
        """Collect it, killed where it outlives the patience; returns how it ended, with its last line of stderr."""
        try:
            self._popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        code = self._popen.wait()
        self.close_input()
        for reader in self._readers:
            reader.join(1.0)  # what it started may hold the pipes open for longer
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        lines = [line for line in self._said.decode(errors="replace").splitlines() if line.strip()]
        return f"{how} after it said: {safe_line(lines[-1].strip())}" if lines else how

    def _read(self, pipe: IO[bytes], hear: Callable[[bytes], None]) -> None:
        with pipe:
            for line in iter(lambda: pipe.readline(_MOST_LINE_BYTES), b""):
                hear(line)
        hear(b"")

    def _keep(self, pipe: IO[bytes]) -> None:
        """Remember the last of what it prints, however much that is."""
        with pipe:
            while said := pipe.read1(_TAIL_BYTES):  # type: ignore[attr-defined]
                self._said = (self._said + said)[-_TAIL_BYTES:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
