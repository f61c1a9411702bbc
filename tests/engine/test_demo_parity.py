"""The demo model through the whole Session against transformers' own processor, forward and generate."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLVideoProcessor

from tests.demos import QWEN2_DEMO
from tests.engine.asking import ANSWER, CLIP, QUESTION, answer_in
from tests.engine.asking import ask as ask_session
from vidqa import EngineConfig, Request, Session
from vidqa.events import Event, Noted, Planned, StageProgress, StageStarted, TextDelta
from vidqa.models.families.qwen2_vl.runtime import resize_frame
from vidqa.models.loader import Loaded, load_model
from vidqa.types import Answer, Placement
from vidqa.video.reader import open_video


@cache
def loaded() -> Loaded:
    return load_model(QWEN2_DEMO, torch.device("cpu"), "fp32", "fp32", Placement())


@cache
def oracle() -> Any:
    model = Qwen2VLForConditionalGeneration.from_pretrained(QWEN2_DEMO, dtype=torch.float32)
    model.eval()
    return model


def ask(**how: Any) -> Answer:
    config = EngineConfig(model=str(QWEN2_DEMO), prefill_chunk=how.pop("prefill_chunk", None),
                          vision_chunk=how.pop("vision_chunk", None), isolate_decoder=False)  # fmt: skip
    with Session(config) as session:
        return ask_session(session, **how)


def oracle_inputs(answer: Answer) -> dict[str, torch.Tensor]:
    """The same frames through transformers' processor, and the same prompt through its tokenizer."""
    plan, tokenizer = answer.plan, loaded().tokenizer
    with open_video(CLIP) as reader:
        indices = [round(seconds * reader.info.fps) for seconds in plan.timestamps_seconds]
        frames = torch.stack(
            [resize_frame(frame.rgb, plan.run_config.height, plan.run_config.width) for frame in reader.frames(indices)]
        )
    processor = Qwen2VLVideoProcessor.from_pretrained(QWEN2_DEMO, do_resize=False, cap_pixels_per_frame=True)
    made = dict(processor(videos=[frames.float()], return_tensors="pt", do_sample_frames=False))
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace("<|video_pad|>", "<|video_pad|>" * plan.visual_tokens)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert ids.shape[1] == plan.prompt_tokens
    video = ids == oracle().config.video_token_id
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": video.int() * 2, **made}


@pytest.mark.parametrize(("frames", "size"), [(None, None), (4, (84, 84)), (2, (112, 84)), (8, (140, 140)), (1, None)])
def test_answers_equal_generate(frames: int | None, size: tuple[int, int] | None) -> None:
    answer = ask(frames=frames, size=size)
    inputs = oracle_inputs(answer)
    output = oracle().generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer.text == loaded().tokenizer.decode(output, skip_special_tokens=True).strip()
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("vision_chunk", [1, 3, 100])
@pytest.mark.parametrize("prefill_chunk", [1, 7, 64, 5000])
def test_chunks_change_nothing(prefill_chunk: int, vision_chunk: int) -> None:
    answer = ask(prefill_chunk=prefill_chunk, vision_chunk=vision_chunk)
    assert answer.text == ANSWER
    assert (answer.plan.run_config.prefill_chunk, answer.plan.run_config.vision_chunk) == (prefill_chunk, vision_chunk)


def test_events_tell_the_whole_story_in_order() -> None:
    with Session(EngineConfig(vision_chunk=1, prefill_chunk=32)) as session:
        events: list[Event] = list(session.ask(Request(video=CLIP, question=QUESTION)))
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages == ["load", "prefill", "video", "vision", "decode"]  # the text before the video is read first
    progress = [event.stage for event in events if isinstance(event, StageProgress)]
    assert progress.index("prefill") < progress.index("vision") < len(progress) - progress[::-1].index("prefill")
    plan, answer = next(event for event in events if isinstance(event, Planned)).plan, answer_in(events)
    assert plan == answer.plan
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).strip() == answer.text
    assert not [event for event in events if isinstance(event, Noted)]
    for stage, total in (("vision", plan.run_config.frames), ("prefill", plan.prompt_tokens)):
        done = [event.done for event in events if isinstance(event, StageProgress) and event.stage == stage]
        assert done == sorted(done) and done[-1] == total and len(done) > 2


@pytest.mark.needs_cuda
def test_the_demo_is_right_on_a_gpu() -> None:
    with Session(EngineConfig(device="cuda")) as session:
        answer = ask_session(session)
    assert answer.text == ANSWER
    assert answer.memory.measured_peak_bytes > answer.memory.weights_bytes


def circle(left: int) -> Image.Image:
    picture = Image.new("RGB", (280, 280), "black")
    ImageDraw.Draw(picture).ellipse((left, 90, left + 80, 170), fill="red")
    return picture


@pytest.mark.parametrize(
    ("name", "places", "answer"),
    [
        ("still.png", [100], "a red circle stays still."),
        ("right.webp", [10 + 14 * step for step in range(12)], ANSWER),
    ],
)
def test_an_image_is_answered_about(tmp_path: Path, name: str, places: list[int], answer: str) -> None:
    first, *others = map(circle, places)
    first.save(tmp_path / name, save_all=bool(others), append_images=others, duration=100, lossless=True)
    with Session(EngineConfig(remember=False)) as session:
        found = ask_session(session, video=str(tmp_path / name), question="What happens in this video?", max_tokens=32)
    assert found.text == answer and found.plan.run_config.frames % 2 == 0
