"""Both demo models, the shipped one and the Qwen2-VL one: small, known to transformers, right about fresh clips."""

import json
from pathlib import Path
from typing import Any

import pytest

from demo_world.export import pixel_bounds
from demo_world.recipes import RECIPES
from demo_world.tokenizer import SPECIAL_TOKENS, VOCABULARY
from tests.demos import QWEN2_DEMO

ASSETS = Path(__file__).parents[2] / "assets"
WORST_SHARE_RIGHT = 0.85  # of the questions about fixed clips; the full proof is scripts/eval_demo_model.py
FOLDERS = {"qwen3_vl": ASSETS / "demo-model", "qwen2_vl": QWEN2_DEMO}
FAMILIES = pytest.mark.parametrize("family", list(FOLDERS))


def _config(family: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDERS[family] / "config.json").read_text(encoding="utf-8"))
    return config


@FAMILIES
def test_it_is_small(family: str) -> None:
    assert sum(file.stat().st_size for file in FOLDERS[family].rglob("*") if file.is_file()) <= 12_000_000


@FAMILIES
def test_special_tokens_of_config_and_tokenizer_agree(family: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[family])
    config, text = _config(family), _config(family)["text_config"]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    assert len(tokenizer) == text["vocab_size"] == VOCABULARY
    assert config["video_token_id"] == ids["<|video_pad|>"]
    assert config["image_token_id"] == ids["<|image_pad|>"]
    assert config["vision_start_token_id"] == ids["<|vision_start|>"]
    assert config["vision_end_token_id"] == ids["<|vision_end|>"]
    assert text["eos_token_id"] == ids["<|im_end|>"]
    generation = json.loads((FOLDERS[family] / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]


@FAMILIES
def test_transformers_loads_it_in_16_bit(family: str) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(FOLDERS[family])
    assert model.config.model_type == family and model.dtype == torch.bfloat16
    assert 2_000_000 < sum(value.numel() for value in model.parameters()) < 4_000_000


@FAMILIES
def test_its_processor_carries_the_bounds(family: str) -> None:
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(FOLDERS[family])
    video, (least, most) = processor.video_processor, pixel_bounds(RECIPES[family])
    of_all = (2 * least, 16 * most) if RECIPES[family].timed else (least, most)
    assert (video.size["shortest_edge"], video.size["longest_edge"]) == of_all
    assert (video.min_frames, video.max_frames) == (4, 16)


@pytest.fixture(scope="module", params=list(FOLDERS))
def results(request: pytest.FixtureRequest) -> list[Any]:
    from eval_demo_model import evaluate

    return list(evaluate(24, 123, str(FOLDERS[request.param]), 4, request.param))


def test_it_is_right_about_fresh_clips(results: list[Any]) -> None:
    assert len(results) >= 96
    wrong = [(result.turn.question, result.answer, result.turn.answer) for result in results if not result.right]
    assert 1 - len(wrong) / len(results) >= WORST_SHARE_RIGHT, wrong


def test_one_event_is_described_rightly(results: list[Any]) -> None:
    single = [result for result in results if result.events == "single" and result.turn.kind == "happens"]
    assert sum(result.right for result in single) >= 0.9 * len(single)


@pytest.mark.parametrize("clip", ["demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4"])
def test_demo_clips_are_small_and_answered(clip: str) -> None:
    from eval_demo_model import answer_of
    from make_demo_clips import SCENES

    from demo_world.questions import is_right, tell
    from vidqa import EngineConfig, Session

    path = ASSETS / clip
    assert path.stat().st_size < 100_000
    with Session(EngineConfig(model="demo", isolate_decoder=False)) as session:
        for question in ("what happens?", "What happens", "What happens?", "what happens in this video?"):
            answer = answer_of(session, str(path), question, None)
            assert is_right(answer, tell(SCENES[clip])), (question, answer)


@pytest.mark.long
@FAMILIES
def test_it_reaches_its_bars(family: str) -> None:
    from eval_demo_model import evaluate, missed, summarise

    assert not missed(summarise(list(evaluate(200, 321, str(FOLDERS[family]), 4, family))))
