"""Where a clip's sidecar goes, and how it is written so that no crash leaves it half written, twice or in doubt.

First a write is planned (`plan_write`), then the journal keeps the plan, then the file becomes what the plan says
(`settle`). After a crash the last is done again: the hashes of the file before and after tell what is missing. A
file that is neither was changed by somebody else, and stays. Knows text and files, not what a caption is.
"""

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from vidqa.batch.clip_record import Written
from vidqa.errors import UsageError
from vidqa.utils.atomic_write import replace_file

OnExisting = Literal["skip", "overwrite", "append", "prepend"]
ON_EXISTING: tuple[OnExisting, ...] = ("skip", "overwrite", "append", "prepend")
Settled = Literal["there", "written", "edited", "lost"]

_NAME_BYTES = 255  # what a name may take up on every usual file system
_EXISTING_BYTES = 2**16


def sidecar_names(names: Iterable[str], suffix: str) -> dict[str, str]:
    """The sidecar of each clip of a whole listing; raises UsageError where one would be a clip itself.

    `clip.mp4` has `clip.txt`. Clips that would share one, and those whose sidecar would be another clip or another
    clip's, have `clip.mp4.txt`; capitals count as small letters, as some file systems take them for the same. The
    listing must be all of it, not a shard, so that every shard says the same. A name that would be too long is cut.
    """
    names = list(names)
    stems = Counter(_stem(name).casefold() for name in names)
    taken = {name.casefold() for name in names}
    sidecars = {}
    for name in names:
        stem = _stem(name)
        is_free = stems[stem.casefold()] == 1 and taken.isdisjoint({stem.casefold(), (stem + suffix).casefold()})
        sidecars[name] = _fitting(stem if is_free else name, suffix)
        if sidecars[name].casefold() in taken:
            raise UsageError(f"The {suffix} file of {name} would replace a clip.", "Leave that clip out.")
    return sidecars


def check_mode(suffix: str, on_existing: OnExisting) -> None:
    """Refuse to add to a file that would then be no file of its format; raises UsageError."""
    if suffix != ".txt" and on_existing in ("append", "prepend"):
        raise UsageError(f"Nothing can be added to a {suffix} file.", "Use --on-existing overwrite, or --format txt.")


def check_writable(folders: Iterable[Path]) -> None:
    """Whether files can be made in these folders, which need not be there yet; raises UsageError."""
    for folder in dict.fromkeys(folders):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise UsageError(f"No files can be written in {there}.", "Give a folder for the captions with -o.")


def existing_text(folder: Path, name: str) -> str:
    """The first 64 KiB of a sidecar that is there, `` where there is none; raises OSError."""
    return (_read(_place(folder, name)) or b"")[:_EXISTING_BYTES].decode("utf-8", "replace")


def may_write(folder: Path, name: str, on_existing: OnExisting, ours: str | None) -> bool:
    """Whether a caption would be written: `skip` leaves alone what vidqa did not write there last; raises OSError.

    `ours` is the hash of what it wrote, as the journal has it.
    """
    return on_existing != "skip" or _hash(_read(_place(folder, name))) in (None, ours)


def is_older(folder: Path, name: str, time_ns: int) -> bool:
    """Whether a sidecar was there before that time; raises OSError."""
    return _place(folder, name).stat().st_mtime_ns < time_ns


def plan_write(folder: Path, name: str, text: str, on_existing: OnExisting, ours: str | None) -> Written | None:
    """What `settle` shall do, for the journal; None where the file is to be left alone. Raises OSError.

    A file that says the same already is vidqa's, whatever the journal has lost.
    """
    base = _read(_place(folder, name))
    before, after = _hash(base), _digest(_joined(base, text, on_existing))
    is_ours = on_existing != "skip" or before in (None, ours, after)
    return Written(name, before, after) if is_ours else None


def settle(folder: Path, written: Written, text: str) -> Settled:
    """Make a sidecar what the plan says, now or after a crash; raises OSError, and then the old file is there.

    `there`: it is already. `written`: it was as before, or missing. `edited`: somebody changed it, and it stays.
    `lost`: `text` is not what was planned, or what it was to be added to is gone. A symbolic link is replaced by a
    file: to follow it would let a folder from elsewhere choose which of the user's files are written.
    """
    path = _place(folder, written.name)
    base = _read(path)
    if _hash(base) == written.after:
        return "there"
    if _hash(base) not in (None, written.before):
        return "edited"
    made = (_joined(base, text, mode) for mode in ON_EXISTING)
    data = next((one for one in made if _digest(one) == written.after), None)
    if data is None:
        return "lost"
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name each time, so that what a killed process left is found; short, as the file's own may be long.
    replace_file(path, [data], path.with_name(f".{_digest(os.fsencode(path.name))[:16]}.vidqa-tmp"))
    return "written"


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _fitting(name: str, suffix: str) -> str:
    """A name with a suffix; cut where it would be too long, with a hash that keeps it apart from others."""
    folder, base = os.path.split(name)
    encoded = os.fsencode(base)
    if len(encoded) + len(suffix) > _NAME_BYTES:
        mark = f"~{_digest(encoded)[:8]}"
        base = encoded[: _NAME_BYTES - len(mark) - len(suffix)].decode("utf-8", "ignore") + mark
    return os.path.join(folder, base + suffix)


def _place(folder: Path, name: str) -> Path:
    """Where a sidecar lies; raises UsageError where that is not in the folder, as a journal from elsewhere may say."""
    path = folder / name
    inside = os.path.realpath(folder)
    if path.name == ".." or not Path(os.path.realpath(path.parent)).is_relative_to(inside):
        raise UsageError(f"{name} leads out of {folder}.", "Captions are written below the folder of the run only.")
    return path


def _read(path: Path) -> bytes | None:
    """What is in a file; None where there is none, or only a link that leads nowhere."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "What is there is no file", str(path))
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _joined(base: bytes | None, text: str, on_existing: OnExisting) -> bytes:
    """The text, added to what was there in its mode; each begins on a line of its own."""
    data = text.encode("utf-8", "backslashreplace")
    if not base or on_existing in ("skip", "overwrite"):
        return data
    if base.endswith(data) if on_existing == "append" else base.startswith(data):
        return base  # it was added before
    first, second = (base, data) if on_existing == "append" else (data, base)
    return first + b"\n" * (not first.endswith(b"\n")) + second


def _hash(data: bytes | None) -> str | None:
    return None if data is None else _digest(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
