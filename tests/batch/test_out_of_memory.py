"""Clips that run out of memory are answered with less, as in `ask`, or recorded as failed; the others are captioned."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.test_fallback import ANSWER, PHASES, failing
from vidqa import EngineConfig, Request, Session
from vidqa.batch.caption_requests import CaptionRequest
from vidqa.batch.captioner import BatchEngine, CaptionerConfig, OnEvent, Opener, PrefetchOptions, SessionCaptioner
from vidqa.batch.clip_record import Clip, ClipRecord, PendingClip
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.errors import Interrupted
from vidqa.events import Event, StageProgress, StageStarted


def captioner_with(
    fault: Callable[[str], None], *, batch: int, on_event: OnEvent = lambda names, event: None
) -> SessionCaptioner:
    """Return a captioner with the demo model; `fault` is called with each phase and may raise out-of-memory."""

    def make(config: EngineConfig, opener: Opener) -> BatchEngine:
        return Session(config, fault=fault, opener=opener)

    engine = EngineConfig(device="cpu", isolate_decoder=False, remember=False)
    request = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""))
    return SessionCaptioner(CaptionerConfig(engine, request, "run", batch, PrefetchOptions(1)), make, on_event)


def captions(captioner: SessionCaptioner, folder: Path, count: int) -> list[ClipRecord]:
    """Return the records of copies of the demo clip, in order."""
    paths = [shutil.copyfile(ROOT / "assets" / "demo.mp4", folder / f"{number}.mp4") for number in range(count)]
    try:
        records = list(captioner.captions(PendingClip(Clip(str(path), path.stem), "") for path in paths))
    finally:
        captioner.close()
    return sorted(records, key=lambda record: record.name)


@pytest.mark.parametrize("phase", PHASES)
def test_a_clip_that_runs_out_of_memory_once_is_captioned_with_a_note(phase: str, tmp_path: Path) -> None:
    first, second = captions(captioner_with(failing(phase, times=1), batch=1), tmp_path, 2)
    assert [(record.status, record.caption) for record in (first, second)] == [("done", ANSWER)] * 2
    (note,) = first.notes
    assert note.startswith(f"{phase} ran out of memory: ")
    assert second.notes == ()


# The first attempt, and one for each reduction.
@pytest.mark.parametrize(("phase", "attempts"), [("vision", 4), ("prefill", 4), ("decode", 3)])
def test_a_clip_that_always_runs_out_of_memory_fails_and_the_next_is_captioned(
    phase: str, attempts: int, tmp_path: Path
) -> None:
    first, second = captions(captioner_with(failing(phase, times=attempts), batch=1), tmp_path, 2)
    assert (first.status, second.status, second.caption) == ("failed", "done", ANSWER)
    assert first.error is not None
    assert (first.error.stage, first.error.kind) == ("plan", "DoesNotFit")
    assert f"The {phase} phase ran out of memory" in first.error.message and first.error.hint


@pytest.mark.parametrize("phase", ["vision", "prefill", "decode"])
def test_a_batch_that_runs_out_of_memory_is_answered_in_smaller_ones(phase: str, tmp_path: Path) -> None:
    records = captions(captioner_with(failing(phase, times=1), batch=4), tmp_path, 4)
    assert [(record.status, record.caption) for record in records] == [("done", ANSWER)] * 4


def test_finish_during_loading_captions_nothing(tmp_path: Path) -> None:
    def finish(names: Sequence[str], event: Event) -> None:
        if isinstance(event, StageStarted | StageProgress) and event.stage == "load":
            captioner.finish()

    captioner = captioner_with(lambda phase: None, batch=1, on_event=finish)
    with pytest.raises(Interrupted, match="while the model was loaded"):
        captions(captioner, tmp_path, 2)
