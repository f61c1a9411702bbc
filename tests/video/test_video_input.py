"""What is typed as a video: addresses, and standard input as a temporary file."""

import errno
import io
import os
import shlex
import shutil
import signal
import stat
import tempfile
from _thread import interrupt_main
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import pytest

from vidqa.errors import UsageError
from vidqa.video.video_input import local_path, spooled


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("clip.mp4", "clip.mp4"),
        ("file:///a%20b/caf%C3%A9%23.mp4", "/a b/café#.mp4"),
        ("file://localhost/a.mp4", "/a.mp4"),
        ("FILE://LocalHost/a.mp4", "/a.mp4"),
        ("file:/a.mp4", "/a.mp4"),
        ("file:///%e9.mp4", os.fsdecode(b"/\xe9.mp4")),
        ("file.mp4", "file.mp4"),
        ("a:b.mp4", "a:b.mp4"),
    ],
)
def test_paths_and_file_addresses(typed: str, path: str) -> None:
    assert local_path(typed) == path


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("https://a.org/clip.MP4?x=1&y=2", "curl -LO 'https://a.org/clip.MP4?x=1&y=2'"),
        ("http://a.org/a.png", "curl -LO http://a.org/a.png"),
        ("https://a.org/[1].mp4", "curl --globoff -LO 'https://a.org/[1].mp4'"),
        ("ftp://a.org/pub/x", "curl -LO ftp://a.org/pub/x"),
        ("https://a.org/watch?v=1", "yt-dlp -f \"bv*[height<=720]\" -o clip.mp4 'https://a.org/watch?v=1'"),
        ("https://a.org/;rm -rf ~", "yt-dlp -f \"bv*[height<=720]\" -o clip.mp4 'https://a.org/;rm -rf ~'"),
        ("rtsp://cam/1", "ffmpeg -i rtsp://cam/1 -c copy -t 60 clip.mkv"),
        ("s3://bucket/a.mp4", "aws s3 cp s3://bucket/a.mp4 ."),
    ],
)
def test_other_addresses_name_the_command_that_fetches_them(typed: str, command: str) -> None:
    with pytest.raises(UsageError) as caught:
        local_path(typed)
    assert f"Run `{command}` and give" in caught.value.remedy
    assert typed in shlex.split(command), "the shell gives the address to the command as it was typed"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("file://nas/a.mp4", "is a file on the host nas."),
        ("file://", "names no file."),
        ("file://localhost", "names no file."),
        ("https://[a/x.mp4", "is an address"),
        ("odd://a/x", "is an address"),
        ("https://a.org/\x1b[2J.mp4", r"https://a.org/\x1b[2J.mp4 is an address"),
        ("file://\x1b[2J/a", r"\x1b[2J"),
    ],
)
def test_what_cannot_be_opened_is_a_usage_error_without_control_characters(typed: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        local_path(typed)
    assert said in caught.value.what and caught.value.remedy and str(caught.value).isprintable()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files, which is empty again after the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_stream_becomes_a_private_file_for_a_while(folder: Path) -> None:
    content = os.urandom(3 * 2**20 + 1)
    with spooled(io.BytesIO(content)) as path:
        assert Path(path).read_bytes() == content and Path(path).name == "stdin"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700
        assert Path(path).parents[1] == folder


def test_an_empty_stream_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"Standard input is empty\."), spooled(io.BytesIO()):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_nothing_is_left_behind_after_an_error(error: type[BaseException], folder: Path) -> None:
    with pytest.raises(error), spooled(io.BytesIO(b"x")):
        raise error


class _Interrupted(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 2**20:
            raise KeyboardInterrupt
        return super().read(size)


def test_nothing_is_left_behind_where_reading_is_interrupted(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), spooled(_Interrupted(bytes(3 * 2**20))):
        pass


def test_a_signal_that_interrupts_no_read_ends_a_copy_that_waits(folder: Path) -> None:
    reading, writing = os.pipe()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt, end = Timer(0.1, interrupt_main), Timer(20, os.close, (writing,))
    try:
        interrupt.start()
        end.start()
        with open(reading, "rb") as stream, pytest.raises(KeyboardInterrupt), spooled(stream):
            pass
        assert end.is_alive()
    finally:
        end.cancel()
        signal.signal(signal.SIGINT, before)
        os.close(writing)


def test_a_stream_of_exactly_the_limit_passes_and_a_longer_one_is_a_usage_error(folder: Path) -> None:
    with spooled(io.BytesIO(bytes(2**20)), 2**20) as path:
        assert os.path.getsize(path) == 2**20
    with (
        pytest.raises(UsageError, match=r"Standard input has more than 1\.0 MiB") as caught,
        spooled(io.BytesIO(bytes(2**20 + 1)), 2**20),
    ):
        pass
    assert "TMPDIR" in caught.value.remedy


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("free", [512 * 2**20 + 10, 1000])
def test_the_disk_is_not_filled(free: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(2**40, 0, free))
    with pytest.raises(UsageError, match="Standard input has more than"), spooled(io.BytesIO(bytes(11))):
        pass


class _Failing(io.BytesIO):
    """Gives one block, then an error, as a disk that is full while it is written or a pipe that breaks."""

    def __init__(self, number: int) -> None:
        super().__init__(bytes(2**20))
        self._number = number

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(self._number, os.strerror(self._number))
        return super().read(size)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Standard input has more than 1.0 MiB, the most that is copied to"),
        (errno.EIO, "cannot be copied to"),
        (errno.EISDIR, "Is a directory."),
    ],
)
def test_an_error_of_the_system_is_a_usage_error(number: int, said: str, folder: Path) -> None:
    with pytest.raises(UsageError) as caught, spooled(_Failing(number)):
        pass
    assert said in caught.value.what and "a file" in caught.value.remedy
