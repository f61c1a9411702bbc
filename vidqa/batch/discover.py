"""Discovery of clips in folders, files and lists of paths, in a reproducible order.

A clip is identified by its name below the given folder, so that the order of arguments and the folder's location do
not change which clips count as captioned.
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
    """Clips, sorted by the bytes of their names, and notes for the user, a sentence each."""

    clips: tuple[Clip, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _FoundFile:
    """A file, its name below the given folder `root`, and its path without symbolic links."""

    root: str
    name: str
    real: str
    is_link: bool


@dataclass(slots=True)
class _Ignored:
    """What was left out."""

    unreadable: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    linked_folders: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    def notes(self, any_clip: bool) -> Iterator[str]:
        """Yield the sentences for the user."""
        yield from self.unreadable
        if self.folders and not any_clip:
            yield f"{_count(self.folders, 'folder')} was not searched; use --recursive."
        if self.linked_folders:
            yield f"{_count(self.linked_folders, 'link')} to a folder not followed: name the folder to have its clips."
        if self.broken_links:
            yield f"{_count(self.broken_links, 'broken link')} left out."
        if self.duplicates:
            yield f"{_count(self.duplicates, 'file')} found more than once and taken once."


def discover(
    paths: Iterable[str], *, listed: Iterable[str] = (), recursive: bool = False, glob: str | None = None
) -> DiscoveredClips:
    """Return the clips among files and folders, each once; raises UsageError for a path that does not exist.

    Missing paths of a list (`listed`) become clips that fail later, since one bad file must not stop a run; if all of
    them are missing, UsageError is raised.

    Of a folder, files with a video's or image's suffix are taken, with `recursive` those below it too; hidden ones and
    links to folders are not. A named file is taken whatever its suffix. `glob` is matched with the name below the
    given folder; its `*` matches `/` too. A folder that cannot be read becomes a note.
    """
    named, from_list = ([*map(os.path.abspath, group)] for group in (paths, listed))
    _check_exist(named)
    if not any(map(os.path.lexists, from_list)):
        _check_exist(from_list)
    given = dict.fromkeys((*named, *from_list))
    ignored = _Ignored()
    files = (file for path in given for file in _files(path, recursive, ignored) if _matches(file.name, glob))
    clips = [Clip(os.path.join(file.root, file.name), name) for file, name in _named(_unique(files, ignored))]
    clips.sort(key=lambda clip: os.fsencode(clip.name))
    ignored.linked_folders = [link for link in ignored.linked_folders if link not in given]
    return DiscoveredClips(tuple(clips), tuple(ignored.notes(bool(clips))))


def given_folders(paths: Iterable[str]) -> list[str]:
    """Return the given paths' folders, each once: a folder itself, a file's folder."""
    found = (path if os.path.isdir(path) else os.path.dirname(path) for path in map(os.path.abspath, paths))
    return list(dict.fromkeys(found))


def relative_to_common_folder(folders: Iterable[str], clips: Iterable[Clip]) -> tuple[Path, tuple[Clip, ...]]:
    """Return the common folder of all `given_folders`, and the clips named relative to it."""
    base = os.path.commonpath(list(folders))
    return Path(base), tuple(Clip(clip.path, os.path.relpath(clip.path, base)) for clip in clips)


def read_list(source: str, *, nul: bool = False) -> list[str]:
    """Return the paths in a file, or of stdin for `-`: one per line, or each ended by NUL; raises UsageError."""
    try:
        with open(sys.stdin.fileno() if source == "-" else source, "rb", closefd=source != "-") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"The list {source} cannot be read: {error.strerror}.", "Give a file with paths.") from error
    if nul:
        return [os.fsdecode(path) for path in data.split(b"\0") if path]
    if b"\0" in data:
        raise UsageError("The list of files has NUL characters in it.", "Use -0 for paths that end with NUL.")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [os.fsdecode(line) for line in (line.removesuffix(b"\r") for line in lines) if line]


def _check_exist(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path) and not os.path.isdir(path)]
    if not missing:
        return
    problem = "is neither a file nor a folder" if os.path.lexists(missing[0]) else "does not exist"
    others = f" This applies to {len(missing) - 1} more of the {len(paths)} given." if len(missing) > 1 else ""
    raise UsageError(f"{missing[0]} {problem}.{others}", "Give existing files and folders.")


def _files(path: str, recursive: bool, ignored: _Ignored) -> Iterator[_FoundFile]:
    """Yield the file at a path, or the clips in the folder there."""
    if os.path.isdir(path):
        yield from _walk(path, recursive, ignored)
    else:
        yield _FoundFile(os.path.dirname(path), os.path.basename(path), os.path.realpath(path), os.path.islink(path))


def _walk(root: str, recursive: bool, ignored: _Ignored) -> Iterator[_FoundFile]:
    prefixes, real_root = [""], os.path.realpath(root)
    while prefixes:
        prefix = prefixes.pop()
        for entry in _visible_entries(os.path.join(root, prefix), ignored):
            name, is_link = prefix + entry.name, entry.is_symlink()
            if entry.is_dir(follow_symlinks=False):
                (prefixes if recursive else ignored.folders).append(f"{name}/")
            elif is_link and entry.is_dir():
                ignored.linked_folders.append(entry.path)
            elif not (is_video_name(name) or is_image_name(name)):
                continue
            elif entry.is_file():
                real = os.path.realpath(entry.path) if is_link else os.path.join(real_root, name)
                yield _FoundFile(root, name, real, is_link)
            elif is_link:
                ignored.broken_links.append(entry.path)


def _visible_entries(folder: str, ignored: _Ignored) -> "list[os.DirEntry[str]]":
    """Return a folder's entries without hidden ones, such as vidqa's journal folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        ignored.unreadable.append(f"{safe_line(folder)} cannot be read: {error.strerror}.")
        return []


def _matches(name: str, glob: str | None) -> bool:
    return glob is None or any(fnmatchcase(name, pattern) for pattern in (glob, glob.removeprefix("**/")))


def _unique(files: Iterable[_FoundFile], ignored: _Ignored) -> list[_FoundFile]:
    """Return each file once: under its own name rather than a link's, else as it was given first."""
    unique: dict[str, _FoundFile] = {}
    for file in files:
        if (other := unique.setdefault(file.real, file)) is not file:
            unique[file.real], duplicate = (file, other) if other.is_link and not file.is_link else (other, file)
            ignored.duplicates.append(os.path.join(duplicate.root, duplicate.name))
    return list(unique.values())


def _named(files: Sequence[_FoundFile]) -> Iterator[tuple[_FoundFile, str]]:
    """Give files unique names: where two clash, all names of their roots get parts of the root's path in front."""
    depths = dict.fromkeys((file.root for file in files), 0)
    while True:
        names = [_path_end(file.root, depths[file.root]) + file.name for file in files]
        counts = Counter(names)
        clashing = {file.root for file, name in zip(files, names, strict=True) if counts[name] > 1}
        if not clashing:
            return zip(files, names, strict=True)
        for root in clashing:
            depths[root] += 1


def _path_end(root: str, depth: int) -> str:
    """Return the last `depth` parts of a folder's path."""
    return "".join(f"{part}/" for part in root.strip(os.sep).split(os.sep)[-depth:] if part) if depth else ""


def _count(paths: Sequence[str], noun: str) -> str:
    """Return `1 link (PATH)`, or how many and the first."""
    first = safe_line(min(paths))
    return f"1 {noun} ({first})" if len(paths) == 1 else f"{len(paths)} {noun}s (the first: {first})"
