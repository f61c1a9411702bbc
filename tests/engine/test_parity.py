"""vidqa's stages against transformers: the same embeddings, the same logits, the same tokens."""

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import HEAD, TAIL, Pair, oracle_inputs, pair, prefill_all, random_patches
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import make_decode_runner
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.models.attention.selector import make_kernel
from vidqa.models.families.qwen2_vl.runtime import encode, position_after, vision_positions
from vidqa.models.family import VisionGrid

GRIDS = [(1, 4, 4), (3, 6, 8), (4, 10, 8)]  # slices, rows, columns in patches; slices ≤ columns / 2
ALL = 10_000


def finish(stage: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    """Run a stage to its end: what it yielded and what it returned."""
    items = []
    while True:
        try:
            items.append(next(stage))
        except StopIteration as finished:
            return items, finished.value


def prompt_tensors(models: Pair, patches: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Embeddings and positions as the pipeline assembles them."""
    spec, grid = models.ours.spec, VisionGrid(len(patches), rows // 2, columns // 2, 1.0)
    after = position_after(spec, len(HEAD), grid)
    with torch.no_grad():
        video = encode(models.ours.visual, patches, rows, columns).flatten(0, 1)
        parts = [models.ours.embed(torch.tensor(HEAD)), video, models.ours.embed(torch.tensor(TAIL))]
    positions = [
        text_positions(0, len(HEAD)),
        vision_positions(spec, len(HEAD), grid),
        text_positions(after, len(TAIL)),
    ]
    return torch.cat(parts), torch.cat(positions, dim=1)


def run_prefill(
    models: Pair, patches: Tensor, rows: int, columns: int, chunk: int, attention: str = "flash", room: int = 64
) -> tuple[Tensor, KVCache, int, Any]:
    """Logits after the prompt, the filled cache, the next position, and the kernel."""
    embeddings, positions = prompt_tensors(models, patches, rows, columns)
    cache = make_cache(models.ours.spec, embeddings.shape[0] + room, torch.float32, torch.device("cpu"))
    kernel = make_kernel(attention, torch.device("cpu"))
    logits = prefill_all(models.ours, embeddings, positions, cache, kernel, chunk)
    return logits, cache, int(positions.max()) + 1, kernel


@pytest.mark.parametrize("grid", [*GRIDS, (9, 4, 6)])
@pytest.mark.parametrize("layout", ["2B", "7B"])
def test_vision_tower_equals_transformers(layout: str, grid: tuple[int, int, int]) -> None:
    _, rows, columns = grid
    patches = random_patches(*grid)
    oracle = pair(layout).oracle.model.visual
    with torch.no_grad():
        expected = oracle(patches.flatten(0, 1), grid_thw=torch.tensor([grid])).pooler_output
        ours = encode(oracle, patches, rows, columns).flatten(0, 1)
        by_slice = torch.cat([encode(oracle, part[None], rows, columns)[0] for part in patches])
    assert torch.allclose(ours, expected, atol=1e-4, rtol=0)
    assert torch.allclose(by_slice, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 64, ALL])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("layout", ["2B", "7B"])
def test_last_logits_equal_transformers(layout: str, grid: tuple[int, int, int], chunk: int) -> None:
    models, patches = pair(layout), random_patches(*grid)
    with torch.no_grad():
        expected = models.oracle(**oracle_inputs(patches, *grid[1:])).logits[0, -1]
    logits, *_ = run_prefill(models, patches, *grid[1:], chunk)
    assert torch.allclose(logits[0], expected, atol=1e-4, rtol=0)


def greedy_oracle(models: Pair, inputs: dict[str, Tensor], count: int) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens and, for each, the gap between its two best logits."""
    result = models.oracle.generate(
        **inputs, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = result.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    best = [logits[0].topk(2).values for logits in result.logits]
    return tokens, [float(pair_[0] - pair_[1]) for pair_ in best]


def assert_same_until_a_tie(ours: list[int], expected: list[int], gaps: list[float]) -> None:
    """Equal token by token; a tie below 1e-4 in the oracle may go either way and ends the comparison."""
    for index, (token, wanted) in enumerate(zip(ours, expected, strict=True)):
        if token != wanted:
            assert gaps[index] < 1e-4, f"token {index} is {token}, not {wanted}, with a gap of {gaps[index]}"
            return


def decode_tokens(models: Pair, start: tuple[Tensor, KVCache, int, Any], count: int) -> list[int]:
    logits, cache, position, kernel = start
    runner = make_decode_runner(models.ours, cache, kernel, position, Sampler(0, 1, 0))
    stage = decode(runner, logits, frozenset(), count)
    tokens, reason = finish(stage)
    assert reason == "length"
    return tokens


@pytest.mark.parametrize("chunk", [1, 7, 64, ALL])
@pytest.mark.parametrize("layout", ["2B", "7B"])
def test_sixty_four_greedy_tokens_equal_generate(layout: str, chunk: int) -> None:
    models, grid = pair(layout), (3, 6, 8)
    patches = random_patches(*grid)
    expected, gaps = greedy_oracle(models, oracle_inputs(patches, *grid[1:]), 64)
    ours = decode_tokens(models, run_prefill(models, patches, *grid[1:], chunk), 64)
    assert_same_until_a_tie(ours, expected, gaps)


def test_more_slices_than_columns_follow_the_paper() -> None:
    """Text goes on after max(T, H, W): transformers is given these positions and must agree."""
    models, grid = pair("2B"), (9, 4, 6)
    patches = random_patches(*grid)
    _, positions = prompt_tensors(models, patches, *grid[1:])
    inputs = oracle_inputs(patches, *grid[1:])
    with torch.no_grad():
        expected = models.oracle(**inputs, position_ids=positions[:, None]).logits[0, -1]
    logits, _, after, _ = run_prefill(models, patches, *grid[1:], 7)
    assert torch.allclose(logits[0], expected, atol=1e-4, rtol=0)
    assert after == len(HEAD) + 9 + len(TAIL)


@pytest.mark.parametrize("grid", GRIDS)
def test_positions_equal_get_rope_index(grid: tuple[int, int, int]) -> None:
    models, patches = pair("2B"), random_patches(*grid)
    inputs = oracle_inputs(patches, *grid[1:])
    expected, _ = models.oracle.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    _, positions = prompt_tensors(models, patches, *grid[1:])
    assert torch.equal(positions, expected[:, 0])


@pytest.mark.parametrize("attention", ["flash", "efficient", "tiled", "flex"])
@pytest.mark.parametrize("layout", ["2B", "7B"])
def test_a_cache_allocated_full_of_nan_changes_nothing(
    layout: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the allocator left in the cache's tail must never reach the answer; flex equals SDPA."""
    models, grid = pair(layout), (3, 6, 8)
    patches = random_patches(*grid)
    expected, gaps = greedy_oracle(models, oracle_inputs(patches, *grid[1:]), 64)
    empty = torch.empty
    with torch.device("cpu"):  # torch looks up its constructors once: not while one of them is replaced
        empty(0)

    def dirty(*size: Any, **how: Any) -> Tensor:
        made = empty(*size, **how)
        return made.fill_(float("nan")) if made.dim() == 5 else made  # only the cache is 5-D

    monkeypatch.setattr(torch, "empty", dirty)
    for chunk in (1, 7, 64, ALL):
        start = run_prefill(models, patches, *grid[1:], chunk, attention)
        assert_same_until_a_tie(decode_tokens(models, start, 64), expected, gaps)
