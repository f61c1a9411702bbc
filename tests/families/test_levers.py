"""Every family under what saves memory or time: small weights, int8 KV, the decode step of constant shapes, batches,
placements and float16, each against transformers or against the plain run.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tests.families.cases import CASES, FamilyCase
from tests.families.parity import (
    CLIP,
    CPU,
    QUESTION,
    Pair,
    Ran,
    ask,
    ask_together,
    assert_same_until_a_tie,
    config_of,
    greedy,
    made_inputs,
    made_plan,
    magnify,
    request_of,
    run_prompt,
    write_checkpoint,
)
from tests.models.test_cpu_linear import int4_weights
from vidqa.engine.decode import decode_batch
from vidqa.engine.decode_runners import CudaGraphDecoder
from vidqa.engine.kv_cache import KVCache, Storage, to_int8
from vidqa.engine.sampler import Sampler
from vidqa.models import loader
from vidqa.models.cpu_linear import Int4Linear, Int8Linear
from vidqa.models.loader import load_model
from vidqa.types import Placement, Turn

QUANTIZED = ("Int8Linear", "Int4Linear", "Linear4bit")
EVERYTHING = Placement(vision_quantized=True, lm_head_quantized=True)


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The quantized linear layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if type(layer).__name__ in QUANTIZED}


def multiplied(layer: Any, whole: nn.Linear) -> Tensor:
    """The matrix that a quantized layer multiplies with, in float32."""
    if isinstance(layer, Int8Linear):
        return layer.weight.float() * layer.scales[:, None]
    if isinstance(layer, Int4Linear):
        return int4_weights(layer, whole).float()
    from bitsandbytes.functional import dequantize_4bit

    matrix: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return matrix.float()


def in_int8_rows(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Round a linear layer's rows to int8, a scale a row, as the int8 layers do."""
    scale = inputs[0].abs().amax(dim=-1, keepdim=True) / 127
    return ((inputs[0] / scale).round() * scale,)


def quantized_pair(pair: Pair, weights: str, placement: Placement) -> Pair:
    """vidqa's model with small weights, and transformers' model of the matrices that these stand for."""
    loaded = load_model(pair.folder, CPU, weights, "fp32", placement)
    oracle = deepcopy(pair.oracle)
    layers = quantized_layers(loaded.model.model)
    for name, layer in layers.items():
        whole = oracle.get_submodule(name)
        whole.weight.data.copy_(multiplied(layer, whole))
        if weights == "int8":
            whole.register_forward_pre_hook(in_int8_rows)
    assert any("visual" in name for name in layers) == placement.vision_quantized
    assert ("lm_head" in layers) == placement.lm_head_quantized
    assert sum("language_model" in name for name in layers) >= 5 * pair.spec.layers
    return Pair(pair.case, pair.folder, loaded, oracle, pair.processor)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def compare_every_layer(small: Pair, error: float) -> None:
    """Have every quantized layer's product compared with the oracle's of the same rows while the model runs."""

    def compare(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            assert relative(output, small.oracle.get_submodule(name)(*inputs)) < error, name

        return hook

    for name, layer in quantized_layers(small.loaded.model.model).items():
        layer.register_forward_hook(compare(name))


# Largest relative error of a product, and share of what quantization loses in the logits. The errors of the layers add
# up: bfloat16 in int4's products and in nf4's on a processor with AVX512-BF16; int8 rows between two codes.
@pytest.mark.parametrize("placement", [Placement(), EVERYTHING], ids=["layers", "everything"])
@pytest.mark.parametrize(
    ("weights", "packed", "error", "share"),
    [
        ("nf4", False, 1e-5, 1e-3), ("nf4", True, 6e-3, 0.2), ("nf4-dq", True, 6e-3, 0.2), ("int8", True, 1e-5, 1.5),
        ("int4", True, 6e-3, 0.2),
    ],
)  # fmt: skip
def test_small_weights_are_those_of_transformers_with_the_same_matrices(
    pair: Pair, weights: str, packed: bool, error: float, share: float, placement: Placement
) -> None:
    small = quantized_pair(pair, weights, placement)
    compare_every_layer(small, error)
    if not packed:  # products in float32, as processors without AVX512-BF16 have them
        for layer in quantized_layers(small.loaded.model.model).values():
            layer.support_avx512bf16_for_cpu = False
    plan = made_plan(pair.spec, list(pair.case.videos.values())[1], vision_chunk=2, prefill_chunk=64)
    ran, inputs = run_prompt(small, plan), made_inputs(pair, plan)
    with torch.no_grad():
        expected, whole = (model(**inputs).logits[0, -1] for model in (small.oracle, pair.oracle))
    found, lost = relative(ran.logits[0], expected), relative(whole, expected)
    assert found < share * lost, (found, lost)
    if not packed:
        assert_same_until_a_tie(greedy(small, ran, 32), small.oracle, inputs)


class Int8Cache(DynamicCache):
    """transformers' cache with keys and values that went through int8."""

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        rounded = []
        for states in (key_states, value_states):
            codes, scales = to_int8(states)
            rounded.append(codes * scales[..., None].float())
        return super().update(*rounded, *others, **named)


def test_an_int8_cache_is_transformers_with_rounded_keys_and_values(pair: Pair) -> None:
    plan = made_plan(pair.spec, list(pair.case.videos.values())[1], vision_chunk=2, prefill_chunk=64, kv="int8")
    ran, inputs = run_prompt(pair, plan), made_inputs(pair, plan)
    with torch.no_grad():
        expected = pair.oracle(**inputs, past_key_values=Int8Cache(config=pair.oracle.config)).logits[0, -1]
        whole = pair.oracle(**inputs).logits[0, -1]
    found, lost = relative(ran.logits[0], expected), relative(whole, expected)
    assert found < lost / 3, (found, lost)  # a value between two codes may go either way
    cache = Int8Cache(config=pair.oracle.config)
    assert_same_until_a_tie(greedy(pair, ran, 48), pair.oracle, inputs, tie=1e-2, past_key_values=cache)


def rows_of_one_batch(pair: Pair, prompts: list[Ran], *, quantized: bool) -> list[KVCache]:
    """The caches of several prompts, copied into rows of one storage."""
    storage = Storage.allocate(pair.spec, 640, torch.float32, CPU, sequences=len(prompts), quantized=quantized)
    rows = []
    for number, ran in enumerate(prompts):
        cached = ran.runner.cached_prompt
        assert cached is not None
        source, tokens, row = cached.cache.storage, cached.cache.length, KVCache(storage, number)
        storage.store[:, :, number, :, :tokens] = source.store[:, :, 0, :, :tokens]
        if storage.scales is not None and source.scales is not None:
            storage.scales[:, :, number, :, :tokens] = source.scales[:, :, 0, :, :tokens]
        row.length = tokens
        rows.append(row)
    return rows


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_the_step_of_constant_shapes_writes_the_plain_steps_tokens(pair: Pair, sequences: int, kv: str) -> None:
    """Alone and in a batch, whose rows are different videos."""
    videos = list(pair.case.videos.values())[:sequences]
    prompts = [run_prompt(pair, made_plan(pair.spec, video, prefill_chunk=64, kv=kv)) for video in videos]
    rows = rows_of_one_batch(pair, prompts, quantized=kv == "int8")
    expected = [greedy(pair, ran, 40) for ran in prompts]
    positions = [ran.runner.next_position for ran in prompts]
    runner = CudaGraphDecoder(pair.loaded.model, rows, positions, [Sampler(0, 1, 0)] * sequences, None)
    found: list[list[int]] = [[] for _ in prompts]
    logits = torch.cat([ran.logits for ran in prompts])
    for row, token in decode_batch(runner, logits, frozenset(), [40] * sequences):
        if isinstance(token, int):
            found[row].append(token)
    assert found == expected
    assert len({tuple(one) for one in found}) == sequences


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_prompts_of_a_batch_that_share_chunks_answer_as_alone(large: Pair, chunk: int) -> None:
    """Chunks hold the end of one prompt and the beginning of the next, with their own vision features."""
    side = large.spec.pixel_factor
    other = str(Path(CLIP).with_name("demo-two.mp4"))
    requests = [
        request_of(large), request_of(large, "why?"), request_of(large, video=other, frames=6),
        request_of(large, "and then?", history=(Turn(QUESTION, "a red circle"),), size=(5 * side, 2 * side)),
    ]  # fmt: skip
    alone = [ask(config_of(large), one)[0].text for one in requests]
    assert ask_together(config_of(large, prefill_chunk=chunk), requests) == alone
    assert len(set(alone)) == len(requests)


PLACEMENTS = (
    Placement(vision_offloaded=True), Placement(kv_on_host=True), Placement(embedding_on_host=True),
    Placement(vision_offloaded=True, kv_on_host=True, embedding_on_host=True),
)  # fmt: skip


@pytest.mark.parametrize("placement", PLACEMENTS, ids=["vision", "kv", "embedding", "all"])
@pytest.mark.parametrize("kv", ["native", "int8"])
def test_placements_change_nothing(large: Pair, placement: Placement, kv: str) -> None:
    """Of the first answer and of a follow-up, which takes embeddings or the cache from where they were left."""
    history = (Turn(QUESTION, "a red circle"),)
    requests = (request_of(large), request_of(large, "why?", history=history))
    plain, moved = (ask(config_of(large, kv=kv, **one), *requests) for one in ({}, {"placement": placement}))
    assert [one.text for one in moved] == [one.text for one in plain]
    assert {one.plan.run_config.placement for one in moved} == {placement}


def test_small_chunks_and_groups_change_nothing(large: Pair) -> None:
    plain, small = (
        ask(config_of(large, **one), request_of(large))[0] for one in ({}, {"vision_chunk": 1, "prefill_chunk": 7})
    )
    assert small.text == plain.text and small.plan.run_config.prefill_chunk == 7


@pytest.fixture(scope="module", params=CASES, ids=str)
def overflowing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FamilyCase, Any]:
    """A checkpoint whose vision tower leaves float16's range."""
    case: FamilyCase = request.param
    folder = write_checkpoint(case, next(iter(case.specs)), tmp_path_factory.mktemp("overflowing") / "m")
    magnify(folder, case.overflowing, 3e4)
    return case, folder


@pytest.mark.parametrize("weights", ["fp16", "nf4", "int8"])
def test_float16_does_not_overflow(
    overflowing: tuple[FamilyCase, Any], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole prompt in float16 against float32 of the same weights; int8 is bitsandbytes', which GPUs run."""
    monkeypatch.setattr(loader, "CPU_WEIGHTS", ())
    case, folder = overflowing
    placement = Placement() if weights == "fp16" else EVERYTHING
    logits = []
    for dtype in ("fp32", "fp16"):
        precision = dtype if weights == "fp16" else weights
        pair = Pair(case, folder, load_model(folder, CPU, precision, dtype, placement), None, None)
        video = list(case.videos.values())[1]
        plan = made_plan(pair.spec, video, weights=precision, dtype=dtype, kv=dtype, vision_chunk=2)
        logits.append(run_prompt(pair, plan).logits.float())
    assert torch.isfinite(logits[1]).all()
    share = 0.02 if weights == "fp16" else 0.05
    assert (logits[0] - logits[1]).abs().max() < share * (logits[0].max() - logits[0].min())
