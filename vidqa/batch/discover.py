"""Which clips there are: folders, files and lists of them become clips in one order; knows names, opens no clip.

A clip is known by its name below the folder that was given, so that the order of the arguments, the folder's own
place and what else is given change as little as can be about what has been captioned already.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from vidqa.batch.clip_record import Clip
from vidqa.errors import UsageError
from vidqa.utils.safe_text import safe_line
from vidqa.video.path_completion import is_image_name, is_video_name


@dataclass(frozen=True, slots=True)
class DiscoveredClips:
    """The clips, sorted by the bytes of their names, and what the user should know, a sentence each."""

    clips: tuple[Clip, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _ListedFile:
    """A file, its name below the given folder `root`, and where it really is."""

    root: str
    name: str
    real: str
    is_link: bool


@dataclass(slots=True)
class _Passed:
    """What was passed over on the way."""

    unreadable: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    linked_folders: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def discover(
    paths: Iterable[str], *, listed: Iterable[str] = (), recursive: bool = False, glob: str | None = None
) -> DiscoveredClips:
    """The clips among files and folders, each once; raises UsageError for a path that does not exist.

    Of the paths that a list names, those that are not there are clips too, since one of many stops nothing: whoever
    opens them finds out. Where none is there, the list is of another place, and a UsageError.

    Of a folder the files with a video's or an image's name are taken, with `recursive` those below it too; hidden
    ones are not, nor folders that are links. A file that is named is taken whatever its suffix. `glob` is a pattern
    for the name below the given folder, in which `*` matches `/` too. A folder that cannot be read is a note.
    """
    named, from_list = ([*map(os.path.abspath, some)] for some in (paths, listed))
    _check_exist(named)
    if not any(map(os.path.lexists, from_list)):
        _check_exist(from_list)
    given = dict.fromkeys((*named, *from_list))
    passed = _Passed()
    files = (file for path in given for file in _files(path, recursive, passed) if _matches(file.name, glob))
    clips = [Clip(os.path.join(file.root, file.name), name) for file, name in _named(_once(files, passed))]
    clips.sort(key=lambda clip: os.fsencode(clip.name))
    return DiscoveredClips(tuple(clips), tuple(_notes(passed, bool(clips))))


def based(paths: Iterable[str], clips: Iterable[Clip]) -> tuple[Path, tuple[Clip, ...]]:
    """The folder that all given paths have in common, and the clips by their names below it: captions lie beside them.

    Of a file it is the folder that it lies in.
    """
    roots = [path if os.path.isdir(path) else os.path.dirname(path) for path in map(os.path.abspath, paths)]
    base = os.path.commonpath(roots)
    return Path(base), tuple(Clip(clip.path, os.path.relpath(clip.path, base)) for clip in clips)


def read_list(source: str, *, nul: bool = False) -> list[str]:
    """The paths in a file, or on standard input for `-`: one per line, or each ended by a NUL; raises UsageError."""
    try:
        with open(sys.stdin.fileno() if source == "-" else source, "rb", closefd=source != "-") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"The list {source} cannot be read: {error.strerror}.", "Give a file with paths.") from error
    if nul:
        return [os.fsdecode(path) for path in data.split(b"\0") if path]
    if b"\0" in data:
        raise UsageError("The list of files has NUL characters in it.", "Paths that end with NUL are read with -0.")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [os.fsdecode(line) for line in (line.removesuffix(b"\r") for line in lines) if line]


def _check_exist(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path) and not os.path.isdir(path)]
    if not missing:
        return
    exists = "is no file and no folder" if os.path.lexists(missing[0]) else "does not exist"
    others = f" The same holds for {len(missing) - 1} more of the {len(paths)} given." if len(missing) > 1 else ""
    raise UsageError(f"{missing[0]} {exists}.{others}", "Give files and folders that are there.")


def _files(path: str, recursive: bool, passed: _Passed) -> Iterator[_ListedFile]:
    """The file at a path, or the clips in the folder there."""
    if os.path.isdir(path):
        yield from _below(path, recursive, passed)
    else:
        yield _ListedFile(os.path.dirname(path), os.path.basename(path), os.path.realpath(path), os.path.islink(path))


def _below(root: str, recursive: bool, passed: _Passed) -> Iterator[_ListedFile]:
    waiting, real = [""], os.path.realpath(root)
    while waiting:
        prefix = waiting.pop()
        for entry in _entries(os.path.join(root, prefix), passed):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                (waiting if recursive else passed.folders).append(f"{name}/")
            elif entry.is_symlink() and entry.is_dir():
                passed.linked_folders.append(entry.path)
            elif not (is_video_name(name) or is_image_name(name)):
                continue
            elif entry.is_file():
                is_link = entry.is_symlink()
                yield _ListedFile(
                    root, name, os.path.realpath(entry.path) if is_link else os.path.join(real, name), is_link
                )
            elif entry.is_symlink():
                passed.broken_links.append(entry.path)


def _entries(folder: str, passed: _Passed) -> "list[os.DirEntry[str]]":
    """What is in a folder, hidden things left out, vidqa's own folder among them."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        passed.unreadable.append(f"{safe_line(folder)} cannot be read: {error.strerror}.")
        return []


def _matches(name: str, glob: str | None) -> bool:
    return glob is None or any(fnmatchcase(name, pattern) for pattern in (glob, glob.removeprefix("**/")))


def _once(files: Iterable[_ListedFile], passed: _Passed) -> list[_ListedFile]:
    """Each file one time: under its own name rather than a link's, else the first in the order of the arguments."""
    kept: dict[str, _ListedFile] = {}
    for file in files:
        if (other := kept.setdefault(file.real, file)) is not file:
            kept[file.real], left = (file, other) if other.is_link and not file.is_link else (other, file)
            passed.twice.append(os.path.join(left.root, left.name))
    return list(kept.values())


def _named(files: Sequence[_ListedFile]) -> Iterator[tuple[_ListedFile, str]]:
    """Files with names that no two share: folders with equal names in them get their own in front of all of theirs."""
    depths = dict.fromkeys((file.root for file in files), 0)
    while True:
        names = [_label(file.root, depths[file.root]) + file.name for file in files]
        counts = Counter(names)
        clashing = {file.root for file, name in zip(files, names, strict=True) if counts[name] > 1}
        if not clashing:
            return zip(files, names, strict=True)
        for root in clashing:
            depths[root] += 1


def _label(root: str, depth: int) -> str:
    """The last `depth` parts of a folder's path."""
    return "".join(f"{part}/" for part in root.strip(os.sep).split(os.sep)[-depth:] if part) if depth else ""


def _notes(passed: _Passed, any_clip: bool) -> Iterator[str]:
    yield from passed.unreadable
    if passed.folders and not any_clip:
        yield f"{_count(passed.folders, 'folder')} in it not looked into: that is what --recursive does."
    if passed.linked_folders:
        yield f"{_count(passed.linked_folders, 'link')} to a folder not followed: name the folder to have its clips."
    if passed.broken_links:
        yield f"{_count(passed.broken_links, 'link')} that leads to no file left out."
    if passed.twice:
        yield f"{_count(passed.twice, 'file')} found by two ways and taken once."


def _count(paths: Sequence[str], what: str) -> str:
    """`1 link (PATH)`, or how many and the first."""
    first = safe_line(min(paths))
    return f"1 {what} ({first})" if len(paths) == 1 else f"{len(paths)} {what}s (the first: {first})"
