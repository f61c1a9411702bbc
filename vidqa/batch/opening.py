"""A clip to its jobs: one, or one for each segment, for which the file has to be opened. Knows no plan, no model."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal

from vidqa.batch.jobs import Job
from vidqa.batch.records import Pending, Span
from vidqa.batch.scenes import find_scenes
from vidqa.batch.segments import cut_evenly
from vidqa.types import VideoInfo
from vidqa.video.decode import Decoding, VideoReader, never
from vidqa.video.reused import ReusedDecoder


class Opening:
    """Opens one clip after the other in one decoder process, for those who want to know more than its path.

    Soon after `stopped` says so, `jobs` raises Interrupted.
    """

    def __init__(
        self, segments: float | Literal["scenes"] | None, how: Decoding, stopped: Callable[[], bool] = never
    ) -> None:
        self._segments = segments
        self._decoder = ReusedDecoder(how, stopped)

    def __enter__(self) -> "Opening":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.close()

    def jobs(self, pending: Pending) -> Iterator[tuple[Job, VideoInfo]]:
        """What is to be asked about a clip, with the clip's facts; raises VideoError children."""
        video, source = self._decoder.open(pending.clip.path)
        if self._segments is None:
            yield Job(pending), video
            return
        spans = self._spans(VideoReader(video, source))
        for number, span in enumerate(spans):
            yield Job(pending, span, number, len(spans)), video

    def _spans(self, reader: VideoReader) -> list[Span]:
        if self._segments == "scenes":
            return find_scenes(reader)
        assert isinstance(self._segments, float)
        return cut_evenly(reader.info.duration_seconds, self._segments)
