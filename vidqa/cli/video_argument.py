"""The argument VIDEO of a command as a local path: addresses, standard input, and the options of a picture folder."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

from vidqa.errors import UsageError
from vidqa.utils.safe_text import safe_line

if TYPE_CHECKING:
    from vidqa.types import VideoInfo

_INTERACTIVE = "tui"


@contextmanager
def local_video(arguments: argparse.Namespace) -> Iterator[None]:
    """Replace `arguments.video` by a local path; a copy of standard input exists until the block ends.

    `--fps` of a folder of pictures becomes `picture_fps`. Raises UsageError for what cannot be opened here.
    """
    from vidqa.video.video_input import STDIN, local_path, spooled

    typed = getattr(arguments, "video", None)
    if not typed:
        _refuse_picture_times(arguments, "no video is named")
        yield
        return
    with ExitStack() as stack:
        if typed == STDIN:
            if arguments.command == _INTERACTIVE:
                raise UsageError(
                    "The session reads keys from standard input, so a video cannot come from there.",
                    "Save the video as a file and give that, or use `vidqa ask - QUESTION`.",
                )
            stack.enter_context(_removed_at_signals())
            arguments.video, arguments.shown_video = stack.enter_context(spooled(_standard_input())), STDIN
        else:
            arguments.video = local_path(typed)
        _set_picture_times(arguments)
        yield


def is_piped(arguments: argparse.Namespace) -> bool:
    """Return whether the video came from standard input: its copy is removed when `local_video` ends."""
    return getattr(arguments, "shown_video", None) is not None


def as_named(video: "VideoInfo", arguments: argparse.Namespace) -> "VideoInfo":
    """Return a video whose path is shown as it was typed: `-` for standard input, not the temporary file."""
    shown = getattr(arguments, "shown_video", None)
    return video if shown is None else replace(video, path=shown)


def _standard_input() -> BinaryIO:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(
            "The video is to come from standard input (-), which is a terminal or closed.",
            "Pipe a video into it, for example `cat clip.mp4 | vidqa ask - QUESTION`, or give a file.",
        )
    return sys.stdin.buffer


def _set_picture_times(arguments: argparse.Namespace) -> None:
    """Take `--fps` as the rate of the pictures where the video is a folder; raises UsageError for a contradiction."""
    if not os.path.isdir(arguments.video):
        _refuse_picture_times(arguments, "the video is a file")
        return
    from vidqa.video.picture_folder import timestamps_file

    fps, timestamps = getattr(arguments, "fps", None), getattr(arguments, "timestamps", None)
    if fps is None:
        return
    if not 0 < fps < math.inf:
        raise UsageError(f"--fps {fps:g} is not above 0.", "Give the pictures' rate, for example --fps 10.")
    if (file := timestamps_file(arguments.video, timestamps)) is not None:
        raise UsageError(
            f"--fps {fps:g} and {safe_line(file)} both say when the pictures are shown.",
            "Leave out --fps, or rename the file.",
        )
    arguments.picture_fps, arguments.fps = fps, None


def _refuse_picture_times(arguments: argparse.Namespace, why: str) -> None:
    """Raise UsageError for times of pictures where there is no folder of them.

    `--fps` is refused in the session alone: other commands sample a file at this rate.
    """
    if getattr(arguments, "timestamps", None) is not None:
        raise UsageError(
            f"--timestamps gives the times of a folder of pictures, and {why}.",
            "Leave it out: a file has its own times.",
        )
    if arguments.command == _INTERACTIVE and arguments.fps is not None:
        raise UsageError(
            f"--fps gives the rate of a folder of pictures, and {why}.",
            "Leave it out: the session's plan panel sets how many frames of a file are read.",
        )


@contextmanager
def _removed_at_signals() -> Iterator[None]:
    """Exit by an exception at SIGTERM and SIGHUP, so that temporary files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
