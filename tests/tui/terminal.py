"""A real terminal for a process: a pty whose output pyte draws."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

ROOT = Path(__file__).parents[2]
ALTERNATE_SCREEN, CURSOR, MOUSE, PASTE, FOCUS = 1049, 25, 1000, 2004, 1004
_OFF_AT_REST = (ALTERNATE_SCREEN, MOUSE, 1003, 1006, 1015, PASTE, FOCUS)
_MODES = re.compile(rb"\x1b\[\?([\d;]+)([hl])")
# Queries and keyboard protocols, which pyte would draw as text.
_NOT_DRAWN = re.compile(rb"\x1b\[(?:[<>=][\d;]*[a-zA-Z]|\?[\d;]*\$p)")
_CUT = re.compile(rb"\x1b(?:\[[\d;?<>=$]*)?\Z")
_FUNCTION = (*(f"\x1bO{letter}" for letter in "PQRS"), *(f"\x1b[{n}~" for n in (15, 17, 18, 19, 20, 21)))
KEYS = {
    "enter": "\r", "escape": "\x1b", "tab": "\t", "backspace": "\x7f", "delete": "\x1b[3~",
    "up": "\x1b[A", "down": "\x1b[B", "right": "\x1b[C", "left": "\x1b[D",
    "page_up": "\x1b[5~", "page_down": "\x1b[6~", "home": "\x1b[H", "end": "\x1b[F",
    **{f"f{number}": code for number, code in enumerate(_FUNCTION, 1)},
}  # fmt: skip


class Terminal:
    """Runs `command` with the pty as its controlling terminal; `close` kills it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 100,
        rows: int = 30,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> None:
        self.raw = bytearray()
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._drawn = 0
        self._master, self._slave = pty.openpty()
        self._set_size(columns, rows)
        self._at_start = termios.tcgetattr(self._slave)
        # A session's leader gets the first terminal that it opens: window changes and hang-ups reach it.
        opening = ["sh", "-c", 'exec "$@" 0<>"$0" 1>&0 2>&0', os.ttyname(self._slave), *command]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(opening, env=environment, cwd=folder, start_new_session=True)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def take(self, seconds: float) -> bytes:
        """Receive what comes within this time, without drawing it."""
        if not self._master or not select.select([self._master], [], [], seconds)[0]:
            return b""
        data = os.read(self._master, 2**16)
        self.raw += data
        return data

    def read(self, seconds: float = 0.02) -> bytes:
        """Receive and draw what comes within this time."""
        data = self.take(seconds)
        self._draw()
        return data

    def _draw(self) -> None:
        data = bytes(self.raw[self._drawn :])
        cut = _CUT.search(data)
        whole = data[: cut.start()] if cut else data
        self._drawn += len(whole)
        self._stream.feed(_NOT_DRAWN.sub(b"", whole))

    @property
    def text(self) -> str:
        """The text on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def rest(self) -> None:
        """Read until nothing more comes."""
        while self.read(0.3):
            pass

    def wait_for(self, wanted: str | Callable[[], object], seconds: float = 20.0) -> None:
        """Read until a text is on the screen, or a condition holds. The error shows the screen."""
        end = time.monotonic() + seconds
        while not (wanted in self.text if isinstance(wanted, str) else wanted()):
            if time.monotonic() > end:
                raise AssertionError(f"it never came: {wanted}\n{self.text}")
            if not self.read() and self.process.poll() is not None and not self.read():
                raise AssertionError(f"the process ended with {self.process.returncode}: {wanted}\n{self.text}")

    def write(self, text: str) -> None:
        """Type text."""
        os.write(self._master, text.encode())

    def press(self, *keys: str) -> None:
        """Press keys by name: those of `KEYS`, `ctrl+x`, or a character."""
        for key in keys:
            self.write(chr(ord(key[-1]) & 0x1F) if key.startswith("ctrl+") else KEYS.get(key, key))

    def press_until(self, key: str, wanted: str | Callable[[], object]) -> None:
        """Press a key and wait for its effect."""
        self.press(key)
        self.wait_for(wanted)

    def ask(self, question: str) -> None:
        """Type a question and Enter in one go, as a paste or a fast typist does."""
        self.write(question)
        self.press("enter")

    def quit(self) -> None:
        """Quit by the key in the footer; assert that it ends well."""
        self.press("ctrl+q")
        assert self.wait_exit() == 0
        self.assert_restored()

    def paste(self, text: str) -> None:
        """Paste in brackets."""
        self.write(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the kernel signals the process."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the window; the kernel signals the process."""
        os.close(self._master)
        self._master = 0

    def wait_exit(self, seconds: float = 20.0) -> int:
        """Read until the process ends; return its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read()
            if time.monotonic() > end:
                raise AssertionError(f"it does not end\n{self.text}")
        while self.read():
            pass
        return self.process.returncode

    def is_on(self, mode: int) -> bool:
        """Return whether a private mode is set; a cursor is shown at first."""
        on = mode == CURSOR
        for match in _MODES.finditer(self.raw):
            if str(mode).encode() in match[1].split(b";"):
                on = match[2] == b"h"
        return on

    def assert_restored(self) -> None:
        """Assert that modes, echo and line discipline are as before the app."""
        assert [mode for mode in _OFF_AT_REST if self.is_on(mode)] == []
        assert self.is_on(CURSOR)
        now = termios.tcgetattr(self._slave)
        assert now[3] & termios.ECHO and now[3] & termios.ICANON and now[3] & termios.ISIG
        assert now == self._at_start

    def after_the_app(self) -> str:
        """Return what was written since the alternate screen was left."""
        return bytes(self.raw).rpartition(b"\x1b[?1049l")[2].decode()

    def close(self) -> None:
        """End the process and the terminal."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self._master:
            self.hang_up()
        if self._slave:
            os.close(self._slave)
            self._slave = 0
