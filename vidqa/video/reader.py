"""VideoReader: a video's facts and its frames, decoded in a process that can be killed.

Every reply of that process has a deadline, and so has every video. Without isolation the same decoder runs in this
process, without a deadline.
"""

import array
import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from vidqa import errors
from vidqa.config import CLIP_DEADLINE_SECONDS, DECODER_DEADLINE_SECONDS
from vidqa.errors import Interrupted, VideoError, VideoNotFound, VideoTooDamaged, VideoUnreadable
from vidqa.types import NO_TIMES, Frame, PictureTimes, VideoInfo
from vidqa.utils.cues import Cue, Subtitles
from vidqa.utils.units import format_timestamp
from vidqa.video.change_signal import Scan, signal_of
from vidqa.video.open import Source, open_in_process
from vidqa.video.picture_folder import file_identity, numbered_pictures
from vidqa.video.subtitle_files import OFF, subtitle_identity

_COMMAND = (sys.executable, "-m", "vidqa.video.decoder_worker")
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")
_PIPE_BYTES = 2**20
_NICENESS = 10
_EXIT_SECONDS = 1.0
_POLL_SECONDS = 0.05  # between two calls of `is_cancelled`


@dataclass(frozen=True, slots=True)
class Decoding:
    """How files are decoded: in a process apart or not, and how long it may take.

    `deadline_seconds` limits every reply of that process, `clip_deadline_seconds` the time spent waiting for its
    replies about one file, from opening it to the last requested frame; each further request for frames has as long
    again. `gives_way` lowers the process's priority. `stream` is FFmpeg's index of the stream to decode; None for the
    best. `pictures` are the times of a folder's pictures. `subs` chooses the subtitles that are read (`Request.subs`).
    """

    isolated: bool = True
    deadline_seconds: float = DECODER_DEADLINE_SECONDS
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS
    gives_way: bool = False
    stream: int | None = None
    pictures: PictureTimes = NO_TIMES
    subs: str = OFF


class VideoReader:
    """An opened video: its facts (`info`), its frames, and `notes` for the user."""

    def __init__(self, info: VideoInfo, source: Source) -> None:
        self.info = info
        self._source = source
        self._yielded = 0
        self._notes: list[str] = list(info.notes)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unusual so far, one sentence each."""
        return tuple(self._notes)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Stream the frames at ascending indices into `info.pts_seconds`; repeats are allowed.

        Ends early if decoding stops; see `check_coverage`.
        """
        self._yielded = 0
        for frame in self._source.frames(indices):
            self._yielded += 1
            if frame.note and frame.note not in self._notes:
                self._notes.append(frame.note)
            yield frame

    def check_coverage(self, indices: Sequence[int]) -> None:
        """Note missing frames; raise VideoTooDamaged if less than half of the requested span was decoded."""
        if self._yielded == len(indices):
            return
        times = self.info.pts_seconds
        begin, end, zero = times[indices[0]], times[indices[-1]], times[0] - self.info.lead_seconds
        reached = times[indices[self._yielded - 1]] if self._yielded else begin
        share = (reached - begin) / (end - begin) if end > begin else 0.0
        reason = f" ({self._source.stopped})" if self._source.stopped else ""
        message = (
            f"{self._yielded} of {len(indices)} frames were decoded, until {format_timestamp(reached - zero)} "
            f"of {format_timestamp(end - zero)}: the file is damaged{reason}."
        )
        if self._yielded == 0 or share < 0.5:
            raise VideoTooDamaged(message, "Fetch it again, or ask about the part that is there with --end.")
        if message not in self._notes:  # the same frames are missing when read again
            self._notes.append(message)

    def scan(self, limit_seconds: float) -> Scan:
        """Scan the whole video for change for about `limit_seconds` at most: yield progress, return the signal."""
        return self._source.scan(limit_seconds)

    def abandon(self) -> None:
        """End `frames` in another thread; only `close` may follow."""
        self._source.abandon()

    def close(self) -> None:
        """Stop decoding and release the file."""
        self._source.close()


def never() -> bool:
    """Return False: the default of `stopped`."""
    return False


def open_video(
    path: str,
    *,
    isolated: bool = True,
    deadline_seconds: float = DECODER_DEADLINE_SECONDS,
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS,
    stopped: Callable[[], bool] = never,
    stream: int | None = None,
    pictures: PictureTimes = NO_TIMES,
    subs: str = OFF,
) -> VideoReader:
    """Open a video file; raise VideoError children, and Interrupted soon after `stopped` returns True.

    The deadlines are those of Decoding. Without isolation there are none, and `stopped` is not called.
    """
    decoding = Decoding(isolated, deadline_seconds, clip_deadline_seconds, False, stream, pictures, subs)
    return VideoReader(*open_source(path, decoding, stopped))


def open_source(path: str, decoding: Decoding, stopped: Callable[[], bool] = never) -> tuple[VideoInfo, Source]:
    """Return a file's facts and its frames; raise as `open_video` does."""
    if not decoding.isolated:
        check_file(path)
        return open_in_process(path, decoding.stream, decoding.pictures, decoding.subs)
    decoder = start_decoder(decoding, stopped)
    try:
        info = decoder.open(path)
    except BaseException:
        decoder.close()
        raise
    decoder.is_cancelled = never  # from now on the caller cancels by `abandon`
    return info, decoder


def probe_facts(path: str, stream: int | None = None, pictures: PictureTimes = NO_TIMES, subs: str = OFF) -> VideoInfo:
    """Return a file's facts, read in this process; raise VideoError children."""
    with open_video(path, isolated=False, stream=stream, pictures=pictures, subs=subs) as reader:
        return reader.info


def check_file(path: str) -> None:
    """Check that a path is that of a readable, regular, non-empty file, or of a folder of numbered pictures.

    Raises VideoNotFound or VideoUnreadable.
    """
    if "://" in path:
        raise VideoNotFound(f"{path} is an address, not a file.", "Download it first and give the file.")
    name = Path(path).name or path
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoNotFound(f"There is no video {path}: {reason}.", "Check the path.") from error
    if stat.S_ISDIR(status.st_mode):
        numbered_pictures(path)
        return
    if not stat.S_ISREG(status.st_mode):
        raise VideoNotFound(f"{path} is not a regular file.", "Copy the video to a file first.")
    if status.st_size == 0:
        raise VideoUnreadable(f"{name} is empty (0 bytes).", "Fetch or copy it again.")
    if not os.access(path, os.R_OK):
        raise VideoUnreadable(f"{name} may not be read by this user.", "Change its permissions.")


def start_decoder(decoding: Decoding, is_cancelled: Callable[[], bool] = never) -> "DecoderProcess":
    """Start a decoding process that has no file open yet."""
    return DecoderProcess(_COMMAND, decoding, is_cancelled)


class DecoderProcess:
    """A process (decoder_worker.py) that opens one file after another, with its pipes and deadlines.

    It ends with the thread that started it. `is_cancelled` is polled while waiting for a reply.
    """

    def __init__(self, command: Sequence[str], decoding: Decoding, is_cancelled: Callable[[], bool] = never) -> None:
        self.stopped = ""
        self.is_cancelled = is_cancelled
        self.file_count = 0  # opened so far
        self.died = False  # the process ended by itself
        self._decoding = decoding
        self._path = ""
        self._opened: tuple[object, VideoInfo] | None = None  # the file's identity and facts
        self._waited_seconds = 0.0  # for replies about the current file
        self._replying = False
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0, env=_environment(),
        )  # fmt: skip
        _enlarge_buffer(self._process.stdout)
        if decoding.gives_way:
            with contextlib.suppress(OSError, AttributeError):  # it ended already, or the system has no priorities
                os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)

    @property
    def reusable(self) -> bool:
        """Whether it can take another command: alive, and not in the middle of a reply."""
        return not self._replying and self._process.poll() is None

    def open(self, path: str) -> VideoInfo:
        """Open a file in place of the previous one; an unchanged file stays open.

        An error of the file leaves the process running; an error of the process ends it.
        """
        self._path, self._waited_seconds = path, 0.0
        decoding = self._decoding
        identity = _identity(path, decoding.subs)
        if self._opened is not None and identity is not None and self._opened[0] == identity:
            return self._opened[1]
        check_file(path)
        self._opened = None
        self.file_count += 1
        try:
            pictures = astuple(decoding.pictures)
            self._command({"open": path, "stream": decoding.stream, "pictures": pictures, "subs": decoding.subs})
            header, payload = self._receive()
        except BaseException:
            if self._replying:
                self.close()
            raise
        self._replying = False
        info = _info(header["info"], payload)
        self._opened = (identity, info)
        return info

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield frames as they arrive from the process."""
        import numpy as np

        self._command({"frames": list(indices)})
        while True:
            header, payload = self._receive()
            if "end" in header:
                self.stopped, self._replying, self._waited_seconds = header["end"], False, 0.0
                return
            height, width = header["shape"]
            rgb = np.frombuffer(payload, np.uint8).reshape(height, width, 3)
            yield Frame(header["index"], header["seconds"], rgb, header.get("note", ""))

    def scan(self, limit_seconds: float) -> Scan:
        """Pass on the progress of a scan in the process; return its signal."""
        self._command({"scan": limit_seconds})
        while True:
            header, payload = self._receive()
            if "done" not in header:
                break
            yield header["done"], header["total"]
        self._replying, self._waited_seconds = False, 0.0
        return signal_of(header, payload)

    def abandon(self) -> None:
        """Kill the process, which ends reads from its pipe in other threads."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and wait for its end."""
        process = self._process
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _command(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._replying = True
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except (BrokenPipeError, ValueError) as error:
            raise self._died() from error

    def _receive(self) -> tuple[dict[str, Any], bytearray]:
        """Return one message, within the deadlines; raise the error of an error message."""
        began = time.monotonic()
        left = self._decoding.clip_deadline_seconds - self._waited_seconds
        until = began + min(self._decoding.deadline_seconds, left)
        length = int.from_bytes(self._read(4, until), "big")
        header: dict[str, Any] = json.loads(bytes(self._read(length, until)))
        if kind := header.get("error"):
            self._replying = False
            raise _error_class(kind)(header["what"], header["remedy"])
        payload = self._read(header["payload_bytes"], until)
        self._waited_seconds += time.monotonic() - began  # without the time that the caller takes in between
        return header, payload

    def _read(self, count: int, until: float) -> bytearray:
        data = bytearray(count)
        view, filled = memoryview(data), 0
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while filled < count:
            self._wait(descriptor, until)
            got = os.readv(descriptor, [view[filled:]])
            if got == 0:
                raise self._died()
            filled += got
        return data

    def _wait(self, descriptor: int, until: float) -> None:
        """Wait until there is something to read; raise Interrupted if `is_cancelled` returns True meanwhile."""
        while (left := until - time.monotonic()) > 0:
            if select.select([descriptor], [], [], min(left, _POLL_SECONDS))[0]:
                return
            if self.is_cancelled():
                raise Interrupted("Stopped while the video was opened.", "Nothing was answered yet.")
        raise self._too_slow()

    def _too_slow(self) -> VideoUnreadable:
        self.close()
        decoding, name = self._decoding, Path(self._path).name
        if self._waited_seconds + decoding.deadline_seconds <= decoding.clip_deadline_seconds:
            return VideoUnreadable(
                f"{name} kept the decoder busy for {decoding.deadline_seconds:g} s without giving a frame.",
                "The file may be damaged or hostile; convert it, or try --decode-in-process if you trust it.",
            )
        return VideoUnreadable(
            f"{name} kept the decoder busy for {decoding.clip_deadline_seconds:g} s in all, the deadline for one "
            "video, and is not read yet.",
            "Use less of it (--end), allow more time (--deadline SECONDS), or convert it to smaller pictures.",
        )

    def _died(self) -> VideoUnreadable:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)  # the pipe closes before the exit code is there
        self.close()
        self.died = True
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return VideoUnreadable(
            f"The decoder {how} while it read {Path(self._path).name}.",
            "The file is damaged or hostile; convert it with another tool.",
        )


def _identity(path: str, subs: str) -> object:
    """Return what differs between two files or two versions of one at a path; None if there is no file."""
    try:
        return path, file_identity(path), subtitle_identity(path, subs)
    except (OSError, ValueError, VideoError):
        return None


def _environment() -> dict[str, str]:
    """Return the variables that FFmpeg needs: no token, no proxy."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # it allocates memory for every thread
    return environment | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}


def _enlarge_buffer(pipe: Any) -> None:
    """Enlarge a pipe's buffer if the system can."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        return


def _info(values: dict[str, Any], payload: bytearray) -> VideoInfo:
    times = array.array("d")
    times.frombytes(payload)
    values["notes"] = tuple(values["notes"])
    if (found := values["subtitles"]) is not None:
        values["subtitles"] = Subtitles(found["source"], found["language"], tuple(Cue(**cue) for cue in found["cues"]))
    return VideoInfo(pts_seconds=tuple(times), **values)


def _error_class(name: str) -> type[VideoError]:
    kind = getattr(errors, name, VideoUnreadable)
    return kind if isinstance(kind, type) and issubclass(kind, VideoError) else VideoUnreadable
