"""Where subtitles stand in each family's prompt, and that a prompt without them is what it was."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from vidqa.models.families.qwen2_5_vl import runtime as qwen2_5
from vidqa.models.families.qwen2_vl import runtime as qwen2
from vidqa.models.families.qwen3_vl import runtime as qwen3
from vidqa.models.family import Segment, TextSegment
from vidqa.models.hub import demo_folder
from vidqa.utils.cues import Cue

CUES = (Cue(0.25, 1.0, "Hello."), Cue(2.0, 2.5, "Two."), Cue(2.2, 3.0, "Three."), Cue(3725.9, 3726.0, "The end."))
TIMES = (0.5, 2.0, 4.0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(demo_folder() / "tokenizer.json"))


def ids_of(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def head_and_tail(tokenizer: Any, question: str = "what happens?") -> tuple[list[int], list[int]]:
    return ids_of("<|im_start|>user\n<|vision_start|>", tokenizer), ids_of(f"<|vision_end|>{question}", tokenizer)


def shown(segments: tuple[Segment, ...], tokenizer: Any) -> str:
    """A prompt as text, `V` for each slice."""
    return "".join(
        tokenizer.decode(list(one.ids)) if isinstance(one, TextSegment) else "V" * one.slices for one in segments
    )


@pytest.mark.parametrize("family", [qwen2, qwen2_5])
def test_a_block_between_the_video_and_the_question(family: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    segments = family.layout(*head_and_tail(tokenizer), TIMES, tokenizer, CUES)
    assert len(segments) == 3
    assert shown(segments, tokenizer) == (
        "<|im_start|>user\n<|vision_start|>VVV<|vision_end|>Subtitles:\n[0:00] Hello.\n[0:02] Two.\n[0:02] Three.\n"
        "[1:02:05] The end.\n\nwhat happens?"
    )


def test_lines_between_slices_in_the_order_of_time(tokenizer: PreTrainedTokenizerFast) -> None:
    """A line comes before the first slice after its start; one that begins with a slice comes after it."""
    segments = qwen3.layout(*head_and_tail(tokenizer), TIMES, tokenizer, CUES)
    assert shown(segments, tokenizer) == (
        "<|im_start|>user\n<0.2 seconds>Subtitle: Hello.\n<0.5 seconds><|vision_start|>V<|vision_end|>"
        "<2.0 seconds><|vision_start|>V<|vision_end|>"
        "<2.0 seconds>Subtitle: Two.\n<2.2 seconds>Subtitle: Three.\n<4.0 seconds><|vision_start|>V<|vision_end|>"
        "<3725.9 seconds>Subtitle: The end.\nwhat happens?"
    )


@pytest.mark.parametrize("family", [qwen2, qwen2_5, qwen3])
def test_without_subtitles_nothing_changes(family: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = head_and_tail(tokenizer)
    assert family.layout(*prompt, TIMES, tokenizer, ()) == family.layout(*prompt, TIMES, tokenizer)


@pytest.mark.parametrize("family", [qwen2, qwen2_5, qwen3])
def test_another_question_changes_only_the_end(family: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Otherwise the cached prompt could not be reused."""
    prompts = [
        family.layout(*head_and_tail(tokenizer, question), TIMES, tokenizer, CUES)
        for question in ("what?", "who is it?")
    ]
    assert prompts[0][:-1] == prompts[1][:-1]
    tails = [list(prompt[-1].ids) for prompt in prompts]
    same = len(tails[0]) - len(ids_of("what?", tokenizer))
    assert tails[0][:same] == tails[1][:same]
