"""The plan against the real modules: full-size models under fake tensors, every live byte counted.

Each replay runs the engine's own vision, prefill and decode steps. A plan may exceed what
the replay counts by 2 % and 2 MiB and never fall below it, and its slopes over slices,
tokens and chunk sizes must be the replay's: a constant cannot pass.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.memory.made import SPEC_2B, SPEC_7B, made_draft
from tests.replay import Replay, replayed
from vidqa.engine.embeddings import PromptEmbeddings
from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prefill import prefill
from vidqa.engine.vision import GroupEncoder, Picture
from vidqa.memory.activations import prompt_tokens
from vidqa.memory.estimate import kv_capacity, tensor_bytes
from vidqa.memory.weights import parameters, staging_bytes
from vidqa.models.attention import make_kernel
from vidqa.models.specs import ModelSpec
from vidqa.types import Draft, Placement

MIB = 2**20
MODELS = {"2B": SPEC_2B, "7B": SPEC_7B}
SETUPS = (("2B", "bf16"), ("2B", "nf4"), ("7B", "bf16"), ("7B", "nf4"), ("7B", "int8"))
SHAPES = ((2, 560, 1008), (4, 560, 1008), (6, 252, 448), (8, 252, 448), (16, 252, 448), (32, 112, 140))
CHUNKS = ((1, 256), (2, 512), (8, 1024))
MOST_PASSES = 2  # a replayed prefill chunk takes a quarter of a second
HEAD = 25


def run_vision(replay: Replay, draft: Draft, spec: ModelSpec) -> PromptEmbeddings:
    """All frames through the vision tower, as the pipeline does it."""
    visual = spec.visual_tokens(draft.frames, draft.height, draft.width)
    tail = range(draft.text_tokens - HEAD)
    rows = PromptEmbeddings(replay.model, range(HEAD), visual, tail, on_host=draft.placement.visual_on_host)
    encoder = GroupEncoder(replay.model, draft.vision_chunk)
    for _ in range(draft.frames):
        group = encoder.push(Picture(torch.empty(3, draft.height, draft.width, dtype=torch.uint8), 0.0))
        if group:
            rows.add(group.embeddings)
        del group
    if group := encoder.flush():
        rows.add(group.embeddings)
    return rows


def run_phases(replay: Replay, draft: Draft, spec: ModelSpec) -> Iterator[tuple[str, int]]:
    """Replayed peaks per phase."""
    live = replay.live
    live.reset()
    rows = run_vision(replay, draft, spec)
    yield "vision", live.peak
    if draft.placement.vision_offloaded:
        replay.drop_vision()
    live.reset()
    kernel, quantized = make_kernel(draft.attention), draft.kv == "int8"
    cache = KVCache(
        spec, kv_capacity(spec, draft), replay.model.dtype, replay.model.device,
        quantized=quantized, on_host=draft.placement.kv_on_host,
    )  # fmt: skip
    positions = torch.zeros(3, prompt_tokens(spec, draft), dtype=torch.long)
    stage = prefill(replay.model, rows, positions, cache, kernel, draft.prefill_chunk)
    while True:
        try:
            next(stage)
        except StopIteration as finished:
            logits = finished.value
            break
    yield "prefill", live.peak
    del rows, stage
    live.reset()
    for _ in range(2):
        embedded, positions = replay.model.embed(torch.tensor([1])), torch.zeros(3, 1, dtype=torch.long)
        logits = replay.model.score(replay.model.run(embedded, positions, cache, kernel))
    yield "decode", live.peak
    del logits


@cache
def replayed_peaks(model: str, drafts: tuple[Draft, ...]) -> list[dict[str, int]]:
    """Peaks of every draft; all share the model's weights."""
    spec = MODELS[model]
    with replayed(spec, drafts[0].weights, drafts[0].placement, drafts[0].dtype) as replay:
        return [dict(run_phases(replay, draft, spec)) for draft in drafts]


def all_drafts(weights: str) -> tuple[Draft, ...]:
    """Frames, sizes and chunks across each other."""
    drafts = (
        made_draft(weights=weights, frames=frames, height=height, width=width, vision_chunk=vision, prefill_chunk=chunk)
        for frames, height, width in SHAPES
        for vision, chunk in CHUNKS
    )
    return tuple(draft for draft in drafts if prompt_tokens(SPEC_2B, draft) <= MOST_PASSES * draft.prefill_chunk)


@pytest.mark.parametrize(("model", "weights"), SETUPS)
def test_every_phase_is_planned_as_it_is_replayed(model: str, weights: str) -> None:
    drafts = all_drafts(weights)
    assert len(drafts) * len(SETUPS) >= 60
    for draft, peaks in zip(drafts, replayed_peaks(model, drafts), strict=True):
        planned = tensor_bytes(MODELS[model], draft)
        for phase, peak in peaks.items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, draft)


@pytest.mark.parametrize(("model", "weights"), SETUPS)
def test_weights_are_counted_to_the_byte(model: str, weights: str) -> None:
    spec, draft = MODELS[model], made_draft(weights=weights)
    with replayed(spec, weights) as replay:
        resting = replay.live.now
    planned = tensor_bytes(spec, draft)["load"]
    assert planned - staging_bytes(spec, weights, "bf16", Placement()) == resting


def slope(model: str, phase: str, low: Draft, high: Draft) -> float:
    """Planned over replayed growth from one draft to another."""
    peaks = [replayed_peaks(model, (draft,))[0][phase] for draft in (low, high)]
    planned = [tensor_bytes(MODELS[model], draft)[phase] for draft in (low, high)]
    return (planned[1] - planned[0]) / (peaks[1] - peaks[0])


@pytest.mark.parametrize("model", ["2B", "7B"])
def test_slopes(model: str) -> None:
    base = made_draft(frames=24, height=252, width=448, vision_chunk=8, prefill_chunk=1024)
    pairs = {
        "slices in a group": ("vision", replace(base, vision_chunk=4), replace(base, vision_chunk=12)),
        "pixels": ("vision", replace(base, frames=8), replace(base, frames=8, height=504, width=896)),
        "tokens": ("prefill", replace(base, frames=16), replace(base, frames=48)),
        "prefill chunk": ("prefill", replace(base, prefill_chunk=512), base),
        "cached tokens": ("decode", replace(base, frames=16), replace(base, frames=48)),
    }
    for name, (phase, low, high) in pairs.items():
        assert slope(model, phase, low, high) == pytest.approx(1, abs=0.02), name


LEVERS = (
    ("7B", "nf4", "bf16", Placement(visual_on_host=True)),
    ("7B", "nf4", "bf16", Placement(visual_on_host=True, embedding_on_host=True)),
    ("7B", "nf4", "bf16", Placement(visual_on_host=True, embedding_on_host=True, vision_offloaded=True)),
    ("7B", "nf4", "bf16", Placement(vision_quantized=True, lm_head_quantized=True)),
    ("7B", "nf4", "int8", Placement()),
    ("7B", "nf4-dq", "bf16", Placement()),
    ("2B", "bf16", "int8", Placement(kv_on_host=True)),
    ("2B", "bf16", "bf16", Placement(kv_on_host=True, visual_on_host=True)),
)


@pytest.mark.parametrize(("model", "weights", "kv", "placement"), LEVERS)
def test_every_lever_saves_what_the_plan_says(model: str, weights: str, kv: str, placement: Placement) -> None:
    draft = made_draft(weights=weights, kv=kv, placement=placement, frames=6)
    (peaks,) = replayed_peaks(model, (draft,))
    planned = tensor_bytes(MODELS[model], draft)
    for phase, peak in peaks.items():
        assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, phase


@pytest.mark.parametrize(("model", "weights"), [("2B", "fp16"), ("7B", "nf4"), ("7B", "int8")])
def test_float16_is_planned_with_its_float32_residual_streams(model: str, weights: str) -> None:
    shapes = ((2, 560, 1008, 2, 512), (4, 560, 1008, 8, 1024), (6, 252, 448, 1, 256), (32, 112, 140, 8, 1024))
    drafts = tuple(
        made_draft(
            weights=weights, dtype="fp16", kv="fp16", frames=frames, height=height, width=width, vision_chunk=vision,
            prefill_chunk=chunk,
        )
        for frames, height, width, vision, chunk in shapes
    )  # fmt: skip
    for draft, peaks in zip(drafts, replayed_peaks(model, drafts), strict=True):
        planned = tensor_bytes(MODELS[model], draft)
        narrow = tensor_bytes(MODELS[model], replace(draft, dtype="bf16", kv="bf16"))
        for phase, peak in peaks.items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, draft)
        assert weights == "int8" or any(narrow[phase] < peak for phase, peak in peaks.items())  # float32 is seen


@pytest.mark.parametrize("chunk", [3, 7])
def test_a_tiny_chunk_is_less_than_its_logits(chunk: int) -> None:
    draft = made_draft(frames=2, height=28, width=56, text_tokens=30, prefill_chunk=chunk)
    (peaks,) = replayed_peaks("2B", (draft,))
    planned = tensor_bytes(SPEC_2B, draft)
    for phase, peak in peaks.items():
        assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, phase


def test_parameters_are_those_of_the_paper() -> None:
    # 2B: 1.54 B language model and 665 M vision tower; 7B: 7.6 B and 676 M (Qwen2-VL's checkpoints).
    assert parameters(SPEC_2B) == 2_208_985_600
    assert parameters(SPEC_7B) == 8_291_375_616
