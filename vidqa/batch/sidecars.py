"""Names of sidecar files, and crash-safe writes to them.

A write is planned (`plan_write`), the journal records the plan, then `apply_write` changes the file. After a crash
`apply_write` runs again: the hashes of the file before and after show whether it is still due. A file that matches
neither hash was edited by somebody and stays. Captions are written below the run's folder, and below `roots`: the real
paths of the folders that the user named, which may be links.
"""

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from vidqa.batch.clip_record import SidecarWrite
from vidqa.errors import UsageError
from vidqa.utils.atomic_write import replace_file

OnExisting = Literal["skip", "overwrite", "append", "prepend"]
ON_EXISTING: tuple[OnExisting, ...] = ("skip", "overwrite", "append", "prepend")
WriteResult = Literal["unchanged", "written", "edited", "lost"]

_MAX_NAME_BYTES = 255  # the limit of common file systems
_MAX_EXISTING_BYTES = 2**16


def sidecar_names(names: Iterable[str], suffix: str) -> dict[str, str]:
    """Map each clip's name to its sidecar's; raises UsageError if a sidecar would replace a clip.

    `clip.mp4` gets `clip.txt`. Clips that would share a sidecar, or whose sidecar would collide with another clip,
    get `clip.mp4.txt`; names are compared without case, as some file systems do. `names` must be the whole listing
    and not a shard's, so that all shards agree. Names that would be too long are cut.
    """
    names = list(names)
    stems = Counter(_stem(name).casefold() for name in names)
    taken = {name.casefold() for name in names}
    sidecars = {}
    for name in names:
        stem = _stem(name)
        is_free = stems[stem.casefold()] == 1 and taken.isdisjoint({stem.casefold(), (stem + suffix).casefold()})
        sidecars[name] = _shortened(stem if is_free else name, suffix)
        if sidecars[name].casefold() in taken:
            raise UsageError(f"The {suffix} file of {name} would replace a clip.", "Leave that clip out.")
    return sidecars


def check_mode(suffix: str, on_existing: OnExisting) -> None:
    """Raise UsageError for appending or prepending to a format other than txt, which would become invalid."""
    if suffix != ".txt" and on_existing in ("append", "prepend"):
        raise UsageError(f"Nothing can be added to a {suffix} file.", "Use --on-existing overwrite, or --format txt.")


def check_writable(folders: Iterable[Path]) -> None:
    """Raise UsageError if files cannot be created in one of the folders, which need not exist yet."""
    for folder in dict.fromkeys(folders):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise UsageError(f"No files can be written in {existing}.", "Give a folder for the captions with -o.")


def check_inside(folder: Path, name: str, roots: Collection[Path] = ()) -> None:
    """Raise UsageError if a sidecar would leave the folder, or is no file's name."""
    _resolve(folder, name, roots)


def existing_text(folder: Path, name: str, roots: Collection[Path] = ()) -> str:
    """Return the first 64 KiB of a sidecar, empty if there is none; raises OSError."""
    return (_read(_resolve(folder, name, roots)) or b"")[:_MAX_EXISTING_BYTES].decode("utf-8", "replace")


def may_write(
    folder: Path, name: str, on_existing: OnExisting, own_hash: str | None, roots: Collection[Path] = ()
) -> bool:
    """Return whether a caption may be written: `skip` protects every file whose hash is not `own_hash`.

    `own_hash` is the hash of vidqa's last write, as journaled. Raises OSError.
    """
    return on_existing != "skip" or _hash(_read(_resolve(folder, name, roots))) in (None, own_hash)


def is_older(folder: Path, name: str, time_ns: int, roots: Collection[Path] = ()) -> bool:
    """Return whether a sidecar was modified before that time; raises OSError."""
    return _resolve(folder, name, roots).stat().st_mtime_ns < time_ns


def plan_write(
    folder: Path, name: str, text: str, on_existing: OnExisting, own_hash: str | None, roots: Collection[Path] = ()
) -> SidecarWrite | None:
    """Return the write for `apply_write`, to be journaled first; None if the file must stay. Raises OSError.

    A file that already has the same content counts as vidqa's own, even if the journal lost its record.
    """
    base = _read(_resolve(folder, name, roots))
    before, after = _hash(base), _digest(_combined(base, text, on_existing))
    is_own = on_existing != "skip" or before in (None, own_hash, after)
    return SidecarWrite(name, before, after) if is_own else None


def apply_write(folder: Path, write: SidecarWrite, text: str, roots: Collection[Path] = ()) -> WriteResult:
    """Carry out a planned write, now or after a crash; raises OSError, which leaves the old file.

    `unchanged`: the file has the planned content already. `written`: it was as before, or missing. `edited`: it was
    changed since and stays. `lost`: `text` is not the planned one, or the text to add to is gone. A symbolic link is
    replaced by a file: following it would let a foreign folder choose which of the user's files are overwritten.
    """
    path = _resolve(folder, write.name, roots)
    base = _read(path)
    if _hash(base) == write.after:
        return "unchanged"
    if _hash(base) not in (None, write.before):
        return "edited"
    candidates = (_combined(base, text, mode) for mode in ON_EXISTING)
    data = next((candidate for candidate in candidates if _digest(candidate) == write.after), None)
    if data is None:
        return "lost"
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same temporary name each time, so that a killed process's leftover is removed; short, as `name` may be long.
    replace_file(path, [data], path.with_name(f".{_digest(os.fsencode(path.name))[:16]}.vidqa-tmp"))
    return "written"


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _shortened(name: str, suffix: str) -> str:
    """Add a suffix; a name that would exceed _MAX_NAME_BYTES is cut and gets a hash that keeps it distinct."""
    folder, base = os.path.split(name)
    encoded = os.fsencode(base)
    if len(encoded) + len(suffix) > _MAX_NAME_BYTES:
        mark = f"~{_digest(encoded)[:8]}"
        base = encoded[: _MAX_NAME_BYTES - len(mark) - len(suffix)].decode("utf-8", "ignore") + mark
    return os.path.join(folder, base + suffix)


def _resolve(folder: Path, name: str, roots: Collection[Path]) -> Path:
    """Return a sidecar's path; raises UsageError if it leaves the folder, as a foreign journal may demand.

    It may lie below one of `roots`: a link to a folder that the user named.
    """
    path = folder / name
    parent = Path(os.path.realpath(path.parent))
    above = (parent, *parent.parents)
    if path.name == ".." or not (any(one in roots for one in above) or Path(os.path.realpath(folder)) in above):
        raise UsageError(f"{name} leads out of {folder}.", "Captions are only written below the folder of the run.")
    return path


def _read(path: Path) -> bytes | None:
    """Return a file's content; None if there is none, or a link to nowhere. Raises OSError for anything but a file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _combined(base: bytes | None, text: str, on_existing: OnExisting) -> bytes:
    """Return the text, added to the present content if the mode says so; each begins on a new line."""
    data = text.encode("utf-8", "backslashreplace")
    if not base or on_existing in ("skip", "overwrite"):
        return data
    if base.endswith(data) if on_existing == "append" else base.startswith(data):
        return base  # added by an earlier run
    first, second = (base, data) if on_existing == "append" else (data, base)
    return first + b"\n" * (not first.endswith(b"\n")) + second


def _hash(data: bytes | None) -> str | None:
    return None if data is None else _digest(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
