"""Clips that run out of memory: answered by less, as `ask` does, or recorded as failed; the others are captioned."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.engine.test_fallback import ANSWER, PHASES, failing
from vidqa import EngineConfig, Request, Session
from vidqa.batch.caption_requests import CaptionRequest
from vidqa.batch.captioner import BatchEngine, Opener, PreparedClips, SessionCaptioner, Tell, nobody
from vidqa.batch.clip_record import Clip, ClipRecord, Pending
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.errors import Interrupted
from vidqa.events import Event, StageProgress, StageStarted

DEMO = Path(__file__).parents[2] / "assets" / "demo.mp4"
CONFIG = EngineConfig(device="cpu", isolate_decoder=False, remember=False)


def runner_of(fault: Callable[[str], None], *, batch: int, tell: Tell = nobody) -> SessionCaptioner:
    """With the demo model, and memory that runs out as told."""

    def make(config: EngineConfig, opener: Opener) -> BatchEngine:
        return Session(config, fault=fault, opener=opener)

    asking = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""))
    return SessionCaptioner(CONFIG, asking, "task", batch=batch, reading=PreparedClips(1), make_engine=make, tell=tell)


def captions(runner: SessionCaptioner, folder: Path, count: int) -> list[ClipRecord]:
    """Records of copies of the demo clip, in order."""
    clips = [Clip(shutil.copyfile(DEMO, folder / f"{number}.mp4").as_posix(), str(number)) for number in range(count)]
    try:
        records = list(runner.captions(Pending(clip, "") for clip in clips))
    finally:
        runner.close()
    return sorted(records, key=lambda record: record.name)


@pytest.mark.parametrize("phase", PHASES)
def test_a_clip_that_memory_runs_out_for_once_is_captioned_and_says_what_was_given_up(
    phase: str, tmp_path: Path
) -> None:
    first, second = captions(runner_of(failing(phase, times=1), batch=1), tmp_path, 2)
    assert [(record.status, record.caption) for record in (first, second)] == [("done", ANSWER)] * 2
    (note,) = first.notes
    assert note.startswith(f"{phase} ran out of memory: ")
    assert second.notes == ()


@pytest.mark.parametrize("phase", ["vision", "prefill", "decode"])
def test_a_clip_that_memory_always_runs_out_for_is_recorded_and_the_next_is_captioned(
    phase: str, tmp_path: Path
) -> None:
    attempts = {"vision": 4, "prefill": 4, "decode": 3}[phase]  # the first, and one for each step down
    first, second = captions(runner_of(failing(phase, times=attempts), batch=1), tmp_path, 2)
    assert (first.status, second.status) == ("failed", "done")
    assert first.error is not None
    assert (first.error.stage, first.error.kind) == ("plan", "DoesNotFit")
    assert f"The {phase} phase ran out of memory" in first.error.message and first.error.hint
    assert second.caption == ANSWER


@pytest.mark.parametrize("phase", ["vision", "prefill", "decode"])
def test_a_group_that_memory_runs_out_for_is_answered_in_smaller_ones(phase: str, tmp_path: Path) -> None:
    records = captions(runner_of(failing(phase, times=1), batch=4), tmp_path, 4)
    assert [(record.status, record.caption) for record in records] == [("done", ANSWER)] * 4


def test_finishing_while_the_model_loads_captions_nothing(tmp_path: Path) -> None:
    def finish(names: Sequence[str], event: Event) -> None:
        if isinstance(event, StageStarted | StageProgress) and event.stage == "load":
            runner.finish()

    runner = runner_of(lambda phase: None, batch=1, tell=finish)
    with pytest.raises(Interrupted, match="while the model was loaded"):
        captions(runner, tmp_path, 2)
