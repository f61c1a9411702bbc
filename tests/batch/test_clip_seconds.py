"""The seconds of a clip are those of its captions: loading the model counts for none."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.batch.test_out_of_memory import captioner_with
from tests.engine.asking import ANSWER, CLIP
from vidqa import Request, Session
from vidqa.batch.captioner import BatchEngine, Opener, SessionCaptioner
from vidqa.batch.clip_record import Clip, PendingClip
from vidqa.config import EngineConfig
from vidqa.events import Event, StageProgress

LOADING_SECONDS = 0.5


class SlowSession(Session):
    """Says for half a second that all bytes of the weights are read, as quantization does."""

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        for number, event in super().ask_many(requests):
            if isinstance(event, StageProgress) and event.stage == "load" and event.done == event.total:
                for _ in range(10):
                    yield number, event
                    time.sleep(LOADING_SECONDS / 10)
            yield number, event


def test_loading_counts_for_no_clip_however_often_its_end_is_said(tmp_path: Path) -> None:
    def make(config: EngineConfig, opener: Opener) -> BatchEngine:
        return SlowSession(config, opener=opener)

    captioner = SessionCaptioner(captioner_with(lambda phase: None, batch=1)._config, make)
    path = shutil.copyfile(CLIP, tmp_path / "clip.mp4")
    started = time.monotonic()
    try:
        (record,) = captioner.captions([PendingClip(Clip(str(path), path.stem), "")])
    finally:
        captioner.close()
    assert record.caption == ANSWER
    assert 0 < record.seconds < time.monotonic() - started - LOADING_SECONDS
