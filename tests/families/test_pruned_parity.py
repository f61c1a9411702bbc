"""Every family with dropped tokens against transformers' decoder on the same kept tokens at the same positions."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.cases import VIDEO_TOKEN
from tests.families.parity import CPU, QUESTION, MadeFrames, Pair, Ran, made_inputs, made_plan, run_prompt
from tests.planner.plan_builders import made_cpu
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine import token_pruning
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import build_prompt, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.events import Noted
from vidqa.models.attention.selector import make_kernel
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import kept_visual_tokens
from vidqa.types import Placement, Plan
from vidqa.utils.generators import finished

TIMES = tuple(index / 4 for index in range(7))  # an odd number of frames
SHARES = (0.4, 0.6)


def plan_of(pair: Pair, share: float, **fields: Any) -> Plan:
    _, size = pair.case.videos["odd frames and rate"]
    return made_plan(pair.spec, (TIMES, size), visual_share=share, **fields)


def kept_rows(ran: Ran, plan: Plan, spec: ModelSpec) -> Tensor:
    """Which rows of the whole prompt are kept, as booleans (n,)."""
    embeddings = ran.runner.vision_embeddings
    assert embeddings is not None
    each = spec.slice_tokens(plan.run_config.height, plan.run_config.width)
    of_video = torch.zeros(embeddings.slices, each, dtype=torch.bool)
    for number, places in enumerate(embeddings.kept):
        of_video[number, places] = True
    kept = torch.ones(len(ran.ids), dtype=torch.bool)
    kept[torch.tensor(ran.ids) == VIDEO_TOKEN] = of_video.flatten()
    return kept


def expected_logits(pair: Pair, plan: Plan, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (vocabulary,) of transformers' decoder over the kept rows, and their positions (3, kept)."""
    inputs, oracle = made_inputs(pair, plan), pair.oracle
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    positions, _ = oracle.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
    ids = inputs["input_ids"][0]
    video = ids == VIDEO_TOKEN
    with torch.no_grad():
        seen = oracle.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
        rows = oracle.get_input_embeddings()(ids)
        rows[video] = seen.pooler_output
        more: dict[str, Any] = {}
        if pair.spec.deepstack:
            added = [features[kept[video]] for features in seen.deepstack_features]
            more = {"visual_pos_masks": video[kept][None], "deepstack_visual_embeds": added}
        out = oracle.model.language_model(
            inputs_embeds=rows[kept][None], position_ids=positions[:, :, kept], use_cache=False, **more
        )
        logits: Tensor = oracle.lm_head(out.last_hidden_state[0, -1])
    return logits, positions[:, 0, kept]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("offloaded", [False, True], ids=["streamed", "offloaded"])
def test_kept_tokens_answer_as_in_transformers(small: Pair, share: float, offloaded: bool) -> None:
    spec = small.spec
    plan = plan_of(small, share, vision_chunk=3, prefill_chunk=32, placement=Placement(vision_offloaded=offloaded))
    ran = run_prompt(small, plan)
    kept = kept_rows(ran, plan, spec)
    logits, positions = expected_logits(small, plan, kept)
    assert torch.equal(ran.positions, positions)
    assert torch.allclose(ran.logits[0], logits, atol=2e-4, rtol=0)
    cached = ran.runner.cached_prompt
    assert cached is not None and cached.cache.length == int(kept.sum())
    text = sum(token != VIDEO_TOKEN for token in ran.ids)
    assert cached.cache.length - text == plan.visual_tokens == kept_visual_tokens(spec, plan.run_config)
    assert plan.visual_tokens < plan.video_tokens


def test_chunks_and_groups_change_nothing(small: Pair) -> None:
    runs = [
        run_prompt(small, plan_of(small, 0.5, vision_chunk=group, prefill_chunk=chunk))
        for group, chunk in ((1, 7), (3, 64), (8, 10_000))
    ]
    for one in runs[1:]:
        assert torch.equal(one.positions, runs[0].positions)
        assert torch.allclose(one.logits, runs[0].logits, atol=2e-4, rtol=0)


def test_the_whole_share_is_what_it_is_without_pruning(small: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_pruning, "REPEAT_SIMILARITY", 2.0)  # no token repeats, whatever random weights make of it
    plan = plan_of(small, 1.0, vision_chunk=2)
    same = replace(plan, run_config=replace(plan.run_config, drop_repeats=True))
    plain, dropping = run_prompt(small, plan), run_prompt(small, same)
    assert torch.equal(plain.positions, dropping.positions) and torch.equal(plain.logits, dropping.logits)


def test_a_prompt_again_from_stored_embeddings(small: Pair) -> None:
    """As after memory ran out in the prefill: nothing is encoded or chosen again."""
    pair, plan = small, plan_of(small, 0.5, vision_chunk=2, prefill_chunk=64)
    ran = run_prompt(pair, plan)
    runner = ran.runner
    runner.cached_prompt = None
    runner._prefill = Prefill(pair.loaded.model, make_kernel("flash", CPU), 16)
    assert torch.allclose(finished(runner.run(None)), ran.logits, atol=2e-4, rtol=0)


def test_a_forecast_that_was_too_low_is_kept_and_said(small: Pair) -> None:
    """Random pictures repeat nothing, and less than half of their tokens are planned for."""
    plan = plan_of(small, 0.4, vision_chunk=2, drop_repeats=True)
    loaded = small.loaded
    layout = layout_of(build_prompt(loaded, QUESTION, None), plan, loaded)
    stages = StageContext(Tracker(made_cpu(bf16=False)), Callbacks(lambda: False), PhaseTimer("test"))
    runner = PromptRunner(loaded.model, plan, layout, Prefill(loaded.model, make_kernel("flash", CPU), 64), stages)
    (note,) = [event.text for event in runner.run(MadeFrames(plan)) if isinstance(event, Noted)]  # type: ignore[arg-type]
    embeddings = runner.vision_embeddings
    assert embeddings is not None and embeddings.filled == plan.visual_tokens
    assert note.startswith(f"{plan.video_tokens - plan.visual_tokens} visual tokens that do not repeat")
