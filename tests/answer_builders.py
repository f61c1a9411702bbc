"""Answers with fixed numbers, without a model."""

from dataclasses import replace

from tests.planner.plan_builders import SPEC_2B, made_run_config, made_video, plan_of
from vidqa.types import Answer, FinishReason, VideoInfo
from vidqa.utils.metrics import MemoryUse, Timing

CLIP = made_video(60)


def made_clip(path: str) -> VideoInfo:
    """A minute of video under a name."""
    return replace(CLIP, path=path)


def made_answer(text: str, reason: FinishReason = "stop") -> Answer:
    """An answer of 11 tokens about a minute of video, with one note and one degrade step."""
    timing = Timing(1.0, 0.5, 0.5, 1.0, 2.0, 1.0, 11)
    memory = MemoryUse(0, 0, 0, 5 * 2**30, 0, 0, ())
    plan = plan_of(made_run_config(), SPEC_2B)
    return Answer(text, reason, "what happens?", CLIP, plan, timing, memory, ("a note",), ("fewer frames",))
