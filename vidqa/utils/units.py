"""Parsing and formatting of sizes and times."""

import re
from collections.abc import Sequence

from vidqa.errors import UsageError

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("B", "kB", "MB", "GB", "TB")
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgt])(ib|b|)|b)?")
_SPAN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|sec|m|min)?")
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")


def format_bytes(count: int) -> str:
    """Format a number of bytes with a binary unit: 1536 is `1.5 KiB`."""
    return _with_unit(count, _BINARY, step=1024, below=1024)


def format_decimal_bytes(count: int) -> str:
    """Format the size of a download as the hub shows it, in 1000s: 4,255,140,312 is `4.3 GB`."""
    return _with_unit(count, _DECIMAL, step=1000, below=999.95)


def _with_unit(count: int, units: Sequence[str], *, step: int, below: float) -> str:
    """Format a number in the first unit, each `step` times the one before it, in which it is `below` so many."""
    size = float(count)
    for unit in units[:-1]:
        if abs(size) < below:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= step
    return f"{size:.1f} {units[-1]}"


def parse_bytes(text: str) -> int:
    """Parse a number of bytes: `8GiB`, `7.5 GB`, `512M` or `1000`; raises UsageError.

    Units without an i count in 1000s, except the bare letters K, M, G, T, which mean KiB and so on.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{text!r} is not a size.", "Write for example 8GiB, 7.5GB or 512MiB.")
    number, letter, rest = match.groups()
    base = 1000 if rest == "b" and letter else 1024
    return int(float(number) * float(base) ** " kmgt".index(letter or " "))


def parse_seconds(text: str) -> float:
    """Parse a duration: `20`, `20s`, `1.5m` or `2min`; raises UsageError."""
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None or float(match.group(1)) <= 0:
        raise UsageError(f"{text!r} is not a span of time above 0.", "Write for example 20s or 2min.")
    return float(match.group(1)) * (60 if (match.group(2) or "s").startswith("m") else 1)


def parse_timestamp(text: str) -> float:
    """Parse a time in seconds: `90`, `90.5`, `1:30` or `0:01:30.5`; raises UsageError."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a time.", "Write seconds (90.5) or a clock time (1:30.5).")
    hours, minutes, seconds = match.groups()
    clock_minutes, clock_seconds = int(minutes or 0), float(seconds)
    if (minutes is not None and clock_seconds >= 60) or (hours is not None and clock_minutes >= 60):
        raise UsageError(f"{text!r} is not a time: minutes and seconds end at 59.", "Write 1:30 or 90.")
    return int(hours or 0) * 3600 + clock_minutes * 60 + clock_seconds


def format_span(seconds: float) -> str:
    """Format a rounded duration: `0.3 s`, `12 s`, `5 min`, `2.5 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_timestamp(seconds: float) -> str:
    """Format seconds as `m:ss.s`, or `h:mm:ss.s` from one hour on."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes_left:02}:{rest / 10:04.1f}"
    return f"{minutes}:{rest / 10:04.1f}"


def format_cue_time(milliseconds: int, point: str) -> str:
    """Format a subtitle's time: `hh:mm:ss,mmm` in SubRip, with a full stop in WebVTT."""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def parse_size(text: str) -> tuple[int, int]:
    """Parse `WxH` as (width, height) in pixels; raises UsageError."""
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a frame size.", "Write WIDTHxHEIGHT in pixels, for example 448x252.")
    width, height = int(match.group(1)), int(match.group(2))
    if width < 1 or height < 1:
        raise UsageError(f"A frame of {width}x{height} has no pixels.", "Write for example 448x252.")
    return width, height
