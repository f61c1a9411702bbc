"""Planned memory of every family's released models against the real modules under fake tensors."""

from dataclasses import replace

import pytest

from tests.planner.plan_builders import made_run_config
from tests.planner.test_replay import check_plans, check_slopes
from tests.replay import replayed
from vidqa.models.registry import released
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import prompt_tokens, waiting_rows
from vidqa.planner.memory_model import tensor_bytes
from vidqa.planner.weight_memory import parameters, staging_bytes
from vidqa.types import Placement, RunConfig

MODELS = (
    "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
)  # fmt: skip
FULL = ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-4B-Instruct")
LONG = pytest.mark.long
SHAPES = {  # height and width in tokens, frames
    "few large": ((20, 36), 2), "some": ((9, 16), 8), "many small": ((4, 5), 32),
}  # fmt: skip
CHUNKS = ((1, 256), (2, 512), (8, 1024))


def run_config_of(spec: ModelSpec, shape: str, **fields: object) -> RunConfig:
    (rows, columns), frames = SHAPES[shape]
    factor = spec.pixel_factor
    return made_run_config(frames=frames, height=rows * factor, width=columns * factor, **fields)


def shallow(spec: ModelSpec) -> ModelSpec:
    """Return the model with few layers and blocks: what a plan may exceed is less then."""
    tower = replace(spec.vision, depth=4, full_attention=(1,) if spec.vision.window else ())
    return replace(spec, layers=4, vision=replace(tower, deepstack_blocks=(0, 1, 2)[: spec.deepstack]))


@pytest.mark.parametrize("weights", ["bf16", pytest.param("nf4", marks=LONG), pytest.param("int8", marks=LONG)])
@pytest.mark.parametrize("name", MODELS)
def test_every_phase_is_planned_as_it_is_replayed(name: str, weights: str) -> None:
    spec = shallow(released()[name])
    run_configs = tuple(
        run_config_of(spec, shape, weights=weights, vision_chunk=vision, prefill_chunk=chunk)
        for shape in SHAPES
        for vision, chunk in CHUNKS
    )
    check_plans(spec, tuple(one for one in run_configs if prompt_tokens(spec, one) <= 3 * one.prefill_chunk))


@pytest.mark.parametrize("weights", ["bf16", pytest.param("nf4", marks=LONG), pytest.param("int8", marks=LONG)])
@pytest.mark.parametrize("name", FULL)
def test_full_size_is_planned_and_weights_to_the_byte(name: str, weights: str) -> None:
    spec = released()[name]
    with replayed(spec, weights) as replay:
        resting = replay.live.now
    run_config = run_config_of(spec, "some", weights=weights)
    planned = tensor_bytes(spec, run_config)["load"]
    assert planned - staging_bytes(spec, weights, "bf16", Placement()) == resting
    check_plans(spec, (run_config,))


@pytest.mark.parametrize("name", MODELS)
def test_float16_is_planned_with_its_float32_residual_streams(name: str) -> None:
    spec = shallow(released()[name])
    check_plans(spec, tuple(run_config_of(spec, one, weights="fp16", dtype="fp16", kv="fp16") for one in SHAPES))


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"])
def test_subtitles_are_planned_as_they_are_replayed(name: str) -> None:
    """Behind the video as a part of the text after it, or between its slices, where they wait with them."""
    spec = shallow(released()[name])
    run_configs = tuple(
        run_config_of(
            spec, shape, vision_chunk=vision, prefill_chunk=chunk, text_tokens=100 + lines, subtitle_tokens=lines
        )
        for shape, vision, chunk, lines in (
            ("many small", 1, 256, 200),
            ("many small", 2, 512, 412),
            ("many small", 2, 512, 30),
            ("some", 8, 1024, 900),
        )
    )
    check_plans(spec, run_configs)


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"])
def test_a_long_question_is_planned_as_it_is_replayed(name: str) -> None:
    """A question of 400 tokens without subtitles fills a chunk beside the last group, of which a part was prefilled."""
    spec = shallow(released()[name])
    run_configs = tuple(
        run_config_of(spec, shape, vision_chunk=vision, prefill_chunk=chunk, text_tokens=425)
        for shape, vision, chunk in (
            ("many small", 1, 256),
            ("many small", 2, 512),
            ("some", 2, 512),
            ("some", 8, 1024),
        )
    )
    check_plans(spec, run_configs)
    short = replace(run_configs[1], text_tokens=100)
    assert waiting_rows(spec, short, "prefill") == waiting_rows(spec, replace(short, text_tokens=45), "prefill")


@pytest.mark.parametrize("name", MODELS)
def test_slopes(name: str) -> None:
    spec = shallow(released()[name])
    base = run_config_of(spec, "some", vision_chunk=8, prefill_chunk=1024)
    small = replace(base, prefill_chunk=512, frames=24)
    pairs = {
        "slices in a group": ("vision", replace(small, vision_chunk=4), replace(small, vision_chunk=12)),
        "pixels": ("vision", base, replace(base, height=2 * base.height, width=2 * base.width)),
        "tokens": ("prefill", replace(base, frames=32), replace(base, frames=64)),
        "prefill chunk": ("prefill", replace(base, frames=32, prefill_chunk=512), replace(base, frames=32)),
    }
    check_slopes(spec, pairs)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize(
    "placement",
    [
        Placement(embedding_on_host=True, vision_offloaded=True),
        pytest.param(Placement(vision_quantized=True, lm_head_quantized=True), marks=LONG),
        Placement(kv_on_host=True),
    ],
)
def test_every_placement_saves_what_is_planned(placement: Placement, name: str) -> None:
    spec = released()[name]
    spec = spec if placement.vision_quantized else shallow(spec)  # the copy of its largest matrix is an upper bound
    ends = {"embedding_on_host": not spec.tied, "lm_head_quantized": not spec.tied}  # a tied one is the lm_head
    place = replace(placement, **{name: allowed and getattr(placement, name) for name, allowed in ends.items()})
    weights = "bf16" if placement.kv_on_host else "nf4"
    check_plans(spec, (run_config_of(spec, "some", weights=weights, kv="int8", placement=place),))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3.75),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29),
        ("Qwen/Qwen3-VL-2B-Instruct", 2.13),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44),
        ("Qwen/Qwen3-VL-8B-Instruct", 8.77),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", 31.07),
    ],
)
def test_parameters_are_those_of_the_release(name: str, billions: float) -> None:
    # What the releases' pages say, in billions.
    assert parameters(released()[name]) / 1e9 == pytest.approx(billions, abs=0.006)
