"""One decoder process for file after file: starting a process costs more than decoding a short clip.

It belongs to the thread that opens files with it: the process ends with the thread that started it.
A process that died, was too slow or was left in the middle is thrown away.
"""

from collections.abc import Callable
from types import TracebackType

from vidqa.errors import VideoError
from vidqa.types import VideoInfo
from vidqa.video.reader import Decoding, Source, Worker, open_source, start_worker

MOST_FILES = 64  # per process: neither a slow leak nor what a hostile file left behind lives on


class ReusedDecoder:
    """Opens files one after the other; each `open` lets go of the file before.

    `stopped` is looked at while a decoder process is waited for; then Interrupted is raised.
    """

    def __init__(self, how: Decoding, stopped: Callable[[], bool]) -> None:
        self._how, self._stopped = how, stopped
        self._worker: Worker | None = None
        self._source: Source | None = None

    def __enter__(self) -> "ReusedDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, path: str) -> tuple[VideoInfo, Source]:
        """A file's facts and its frames' source, until the next `open`; raises VideoError children and Interrupted."""
        if not self._how.isolated:
            self.close()
            info, self._source = open_source(path, self._how, self._stopped)
            return info, self._source
        worker = self._usable()
        try:
            return worker.open(path), worker
        except VideoError:
            if not self.suspect:
                raise
        worker = self._usable()
        return worker.open(path), worker

    @property
    def suspect(self) -> bool:
        """Whether the process died over a file, but may have been spoiled by those before it."""
        return self._worker is not None and self._worker.died and self._worker.files > 1

    def abandon(self) -> None:
        """End the process, from another thread: whoever waits for it is told."""
        if (worker := self._worker) is not None:
            worker.abandon()

    def close(self) -> None:
        """End the process, or close the file in this one."""
        for held in (self._worker, self._source):
            if held is not None:
                held.close()
        self._worker = self._source = None

    def _usable(self) -> Worker:
        if self._worker is None or not self._worker.reusable or self._worker.files >= MOST_FILES:
            self.close()
            self._worker = start_worker(self._how, self._stopped)
        return self._worker
