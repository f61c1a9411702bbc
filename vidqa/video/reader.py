"""VideoReader: a video's facts and its frames, decoded in a process that can be killed.

The engine's only door to a video file. Every reply of the worker has a deadline, and a whole
clip may have one. In process (by flag) the same FrameSource runs here, unprotected. Knows no model.
"""

import array
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from vidqa import errors
from vidqa.config import CLIP_DEADLINE_SECONDS, DECODER_DEADLINE_SECONDS
from vidqa.errors import Interrupted, VideoError, VideoTooDamaged, VideoUnreadable
from vidqa.types import NO_TIMES, Frame, PictureTimes, VideoInfo
from vidqa.utils.units import format_timestamp
from vidqa.video.picture_folder import file_identity

_WORKER = (sys.executable, "-m", "vidqa.video.decoder_worker")
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")
_PIPE_BYTES = 2**20
_NICENESS = 10
_EXIT_SECONDS = 1.0
_LOOK_SECONDS = 0.05  # how often is looked whether to stop, while a file is opened


@dataclass(frozen=True, slots=True)
class Decoding:
    """How files are decoded: in a process of its own or not, and how long it may take.

    `deadline_seconds` bounds every reply of that process; `clip_deadline_seconds` all the time that is spent
    waiting for its replies about one file, from opening it to the last frame that was asked for; each further
    request for frames has as long again. `gives_way` lets computing threads have
    the processor first, for frames that are not waited for yet. `stream` is the index of the picture to take, as FFmpeg
    counts; None for the best. `pictures` are the times of a folder's pictures.
    """

    isolated: bool = True
    deadline_seconds: float = DECODER_DEADLINE_SECONDS
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS
    gives_way: bool = False
    stream: int | None = None
    pictures: PictureTimes = NO_TIMES


class Source(Protocol):
    """Where frames come from: a worker process or this one."""

    stopped: str

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Frames in order, until the end or the damage."""

    def abandon(self) -> None:
        """Make `frames` end soon, from another thread."""

    def close(self) -> None:
        """Let go of the file."""


class VideoReader:
    """An opened video. `frames` streams; `notes` says what the user should know."""

    def __init__(self, info: VideoInfo, source: Source) -> None:
        self.info = info
        self._source = source
        self._delivered = 0
        self._notes: list[str] = list(info.notes)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unusual so far, a sentence each."""
        return tuple(self._notes)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Stream the frames at ascending indices into `info.pts_seconds`; repeats are allowed.

        Ends early where decoding stops; `check_coverage` judges that.
        """
        self._delivered = 0
        for frame in self._source.frames(indices):
            self._delivered += 1
            if frame.note and frame.note not in self._notes:
                self._notes.append(frame.note)
            yield frame

    def check_coverage(self, indices: Sequence[int]) -> None:
        """Note missing frames; raises VideoTooDamaged if less than half of the asked span was decoded."""
        if self._delivered == len(indices):
            return
        times = self.info.pts_seconds
        begin, end, zero = times[indices[0]], times[indices[-1]], times[0] - self.info.lead_seconds
        reached = times[indices[self._delivered - 1]] if self._delivered else begin
        share = (reached - begin) / (end - begin) if end > begin else 0.0
        reason = f" ({self._source.stopped})" if self._source.stopped else ""
        told = (
            f"{self._delivered} of {len(indices)} frames were decoded, until {format_timestamp(reached - zero)} "
            f"of {format_timestamp(end - zero)}: the file is damaged{reason}."
        )
        if self._delivered == 0 or share < 0.5:
            raise VideoTooDamaged(told, "Fetch it again, or ask about the part that is there with --end.")
        if told not in self._notes:  # read a second time, it misses the same again
            self._notes.append(told)

    def abandon(self) -> None:
        """Give up on the frames that another thread is waiting for; only `close` may follow."""
        self._source.abandon()

    def close(self) -> None:
        """Stop decoding and let go of the file."""
        self._source.close()


def never() -> bool:
    """Nobody stops it."""
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
) -> VideoReader:
    """Open a video file; raises VideoError children, and Interrupted soon after `stopped` says so.

    The deadlines are those of Decoding. In this process there are none, and nothing is looked at before the file is
    open.
    """
    how = Decoding(isolated, deadline_seconds, clip_deadline_seconds, stream=stream, pictures=pictures)
    return VideoReader(*open_source(path, how, stopped))


def open_source(path: str, how: Decoding, stopped: Callable[[], bool] = never) -> tuple[VideoInfo, Source]:
    """A file's facts and where its frames come from; raises as `open_video` does."""
    if not how.isolated:
        from vidqa.video.open import open_here

        return open_here(path, how.stream, how.pictures)
    worker = start_worker(how, stopped)
    try:
        info = worker.open(path)
    except BaseException:
        worker.close()
        raise
    worker.asked_to_stop = never  # from now on whoever reads frames looks, and abandons them
    return info, worker


def start_worker(how: Decoding, stopped: Callable[[], bool] = never) -> "Worker":
    """A decoding process that has no file open yet."""
    return Worker(_WORKER, how, stopped)


class Worker:
    """A decoding process that opens one file after another, its pipes and its deadlines.

    It ends with the thread that started it. `asked_to_stop` is looked at while a reply is waited for.
    """

    def __init__(self, command: Sequence[str], how: Decoding, stopped: Callable[[], bool] = never) -> None:
        self.stopped = ""
        self.asked_to_stop = stopped
        self.files = 0  # that were opened so far
        self.died = False  # the process ended by itself
        self._how = how
        self._path = ""
        self._opened: tuple[object, VideoInfo] | None = None  # the file as it was, and its facts
        self._waited_seconds = 0.0  # for replies about this file
        self._replying = False
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0, env=_environment(),
        )  # fmt: skip
        _widen(self._process.stdout)
        if how.gives_way:
            with contextlib.suppress(OSError, AttributeError):  # it ended already, or there is no such thing
                os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)

    @property
    def reusable(self) -> bool:
        """Whether it would understand a next command: alive, and not in the middle of a reply."""
        return not self._replying and self._process.poll() is None

    def open(self, path: str) -> VideoInfo:
        """Open a file in place of the one before; the same file again, unchanged, stays as it is.

        After an error of the file the process goes on; after one of the process it is ended.
        """
        self._path, self._waited_seconds = path, 0.0
        identity = _identity(path)
        if self._opened is not None and identity is not None and self._opened[0] == identity:
            return self._opened[1]
        self._opened = None
        self.files += 1
        try:
            self._command({"open": path, "stream": self._how.stream, "pictures": astuple(self._how.pictures)})
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
        """Frames as they come from the process."""
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

    def abandon(self) -> None:
        """Kill the process: whoever reads from it finds the pipe at its end."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and collect it."""
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
        """One message, within the deadlines; an error message is raised as what it was."""
        began = time.monotonic()
        until = began + min(self._how.deadline_seconds, self._how.clip_deadline_seconds - self._waited_seconds)
        length = int.from_bytes(self._read(4, until), "big")
        header: dict[str, Any] = json.loads(bytes(self._read(length, until)))
        if kind := header.get("error"):
            self._replying = False
            raise _error_class(kind)(header["what"], header["remedy"])
        payload = self._read(header["payload_bytes"], until)
        self._waited_seconds += time.monotonic() - began  # what the reader does in between is not the file's fault
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
        """Until there is something to read; looks meanwhile whether to stop."""
        while (left := until - time.monotonic()) > 0:
            if select.select([descriptor], [], [], min(left, _LOOK_SECONDS))[0]:
                return
            if self.asked_to_stop():
                raise Interrupted("Stopped while the video was opened.", "Nothing was answered yet.")
        raise self._too_slow()

    def _too_slow(self) -> VideoUnreadable:
        self.close()
        how, name = self._how, Path(self._path).name
        if self._waited_seconds + how.deadline_seconds <= how.clip_deadline_seconds:
            return VideoUnreadable(
                f"{name} kept the decoder busy for {how.deadline_seconds:g} s without giving a frame.",
                "The file may be damaged or hostile; convert it, or try --decode-in-process if you trust it.",
            )
        return VideoUnreadable(
            f"{name} kept the decoder busy for {how.clip_deadline_seconds:g} s in all, the deadline for one video, "
            "and is not read yet.",
            "Look at less of it (--end), give it longer (--deadline SECONDS), or convert it to smaller pictures.",
        )

    def _died(self) -> VideoUnreadable:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)  # its pipe ends a little before it does; the message needs its exit code
        self.close()
        self.died = True
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return VideoUnreadable(
            f"The decoder {how} while it read {Path(self._path).name}.",
            "The file is damaged or hostile; convert it with another tool.",
        )


def _identity(path: str) -> object:
    """What tells a file from another one at the same path; None where there is none."""
    try:
        return path, file_identity(path)
    except (OSError, ValueError, VideoError):
        return None


def _environment() -> dict[str, str]:
    """What FFmpeg needs and nothing more: no token, no proxy."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    kept["OPENBLAS_NUM_THREADS"] = "1"  # numpy's library takes memory for every thread, and has nothing to compute
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}


def _widen(pipe: Any) -> None:
    """Let a frame pass in fewer, larger pieces where the system allows it."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        return


def _info(values: dict[str, Any], payload: bytearray) -> VideoInfo:
    times = array.array("d")
    times.frombytes(payload)
    values["notes"] = tuple(values["notes"])
    return VideoInfo(pts_seconds=tuple(times), **values)


def _error_class(name: str) -> type[VideoError]:
    kind = getattr(errors, name, VideoUnreadable)
    return kind if isinstance(kind, type) and issubclass(kind, VideoError) else VideoUnreadable
