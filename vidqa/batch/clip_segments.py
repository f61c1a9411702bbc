"""A clip to its jobs: one, or one for each segment, for which the file has to be opened. Knows no plan, no model."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal

from vidqa.batch.caption_requests import PlannedQuestion
from vidqa.batch.clip_record import Pending, Span
from vidqa.batch.scene_detection import find_scenes
from vidqa.batch.segmentation import cut_evenly
from vidqa.types import VideoInfo
from vidqa.video.decoder_pool import ReusedDecoder
from vidqa.video.reader import Decoding, VideoReader, never


class SegmentedClip:
    """Opens one clip after the other in one decoder process, for those who want to know more than its path.

    Soon after `stopped` says so, `jobs` raises Interrupted.
    """

    def __init__(
        self, segments: float | Literal["scenes"] | None, how: Decoding, stopped: Callable[[], bool] = never
    ) -> None:
        self._segments = segments
        self._decoder = ReusedDecoder(how, stopped)

    def __enter__(self) -> "SegmentedClip":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.close()

    def jobs(self, pending: Pending) -> Iterator[tuple[PlannedQuestion, VideoInfo]]:
        """What is to be asked about a clip, with the clip's facts; raises VideoError children."""
        video, source = self._decoder.open(pending.clip.path)
        if self._segments is None:
            yield PlannedQuestion(pending), video
            return
        spans = self._spans(VideoReader(video, source))
        for number, span in enumerate(spans):
            yield PlannedQuestion(pending, span, number, len(spans)), video

    def _spans(self, reader: VideoReader) -> list[Span]:
        if self._segments == "scenes":
            return find_scenes(reader)
        assert isinstance(self._segments, float)
        return cut_evenly(reader.info.duration_seconds, self._segments)
