"""Reuse of one decoder process for many files: starting a process takes longer than decoding a short clip."""

from collections.abc import Callable

from vidqa.errors import VideoError
from vidqa.types import VideoInfo
from vidqa.video.open import Source
from vidqa.video.reader import DecoderProcess, Decoding, open_source, start_decoder

MAX_FILES = 64  # per process, to bound leaks and damage by a hostile file


class ReusedDecoder:
    """Opener of one file after another; each `open` closes the previous file.

    A process that died, was too slow or was left in the middle of a reply is replaced. It ends with the thread that
    called `open`. Interrupted is raised if `is_cancelled` returns True while a reply is awaited.
    """

    def __init__(self, decoding: Decoding, is_cancelled: Callable[[], bool]) -> None:
        self._decoding, self._is_cancelled = decoding, is_cancelled
        self._process: DecoderProcess | None = None
        self._source: Source | None = None

    def __enter__(self) -> "ReusedDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: str) -> tuple[VideoInfo, Source]:
        """Return a file's facts and frames, valid until the next `open`; raise VideoError children and Interrupted."""
        if not self._decoding.isolated:
            self.close()
            info, self._source = open_source(path, self._decoding, self._is_cancelled)
            return info, self._source
        process = self._usable_process()
        try:
            return process.open(path), process
        except VideoError:
            if not self.suspect:
                raise
        process = self._usable_process()
        return process.open(path), process

    @property
    def suspect(self) -> bool:
        """Whether the process died over a file, and an earlier file may be the cause."""
        return self._process is not None and self._process.died and self._process.file_count > 1

    def abandon(self) -> None:
        """Kill the process from another thread; the thread that waits for it gets an error."""
        if (process := self._process) is not None:
            process.abandon()

    def close(self) -> None:
        """End the process, or close the file in this one."""
        for opened in (self._process, self._source):
            if opened is not None:
                opened.close()
        self._process = self._source = None

    def _usable_process(self) -> DecoderProcess:
        if self._process is None or not self._process.reusable or self._process.file_count >= MAX_FILES:
            self.close()
            self._process = start_decoder(self._decoding, self._is_cancelled)
        return self._process
