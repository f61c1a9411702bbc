"""The tokenizer: any text survives it, and the chat template writes Qwen2-VL's format."""

from typing import Any

import pytest

from demo_world.tokenizer import SPECIAL_TOKENS, VOCABULARY, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.mark.parametrize(
    "text", ["what happens?", "a red circle moves right.", "Ünïcode 視頻 🎬", "tabs\tand\nlines  12345", " leading", ""]
)
def test_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_special_tokens_are_single_ids(tokenizer: Any) -> None:
    ids = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in SPECIAL_TOKENS]
    assert all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == len(SPECIAL_TOKENS)
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.eos_token == "<|im_end|>"


def test_building_twice_gives_the_same_ids(tokenizer: Any) -> None:
    text = "what happens first in this clip?"
    assert build_tokenizer()(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_template_adds_the_default_system_message(tokenizer: Any) -> None:
    user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what happens?"}]}
    assert tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what happens?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_template_renders_systems_images_and_turns(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]},
        {"role": "assistant", "content": "red."},
        {"role": "user", "content": "what shape?"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what color?<|im_end|>\n"
        "<|im_start|>assistant\nred.<|im_end|>\n"
        "<|im_start|>user\nwhat shape?<|im_end|>\n"
    )
