"""Every family with dropped tokens against transformers' decoder on the same kept tokens at the same positions."""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from tests.families import test_qwen2_5_vl as tests_25
from tests.families import test_qwen3_vl as tests_3
from tests.families.parity import (
    CPU,
    QUESTION,
    VIDEO_TOKEN,
    VOCABULARY,
    MadeFrames,
    Pair,
    Ran,
    load_pair,
    made_plan,
    oracle_inputs,
    pictures,
    rendered,
    run_prompt,
    write_checkpoint,
)
from tests.planner.plan_builders import made_cpu
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import build_prompt, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.events import Noted
from vidqa.models.attention.selector import make_kernel
from vidqa.models.families import qwen2_5_vl, qwen2_vl, qwen3_vl
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.planner.activation_memory import kept_visual_tokens
from vidqa.types import Placement, Plan

TIMES = tuple(index / 4 for index in range(7))  # an odd number of frames
SHARES = (0.4, 0.6)


def spec_2() -> ModelSpec:
    tower = VisionSpec(2, 64, 4, 14, 2, 2, 256)
    return ModelSpec("qwen2_vl", 2, 192, 96, 12, 2, 16, VOCABULARY, 32768, VIDEO_TOKEN, False, tower)


def processor_2(tokenizer: Any) -> Any:
    video = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, video)


@dataclass(frozen=True)
class Family:
    """A family's tiny checkpoint, the size of frames, and how transformers' inputs are made."""

    module: ModuleType
    spec: ModelSpec
    processor: Any
    size: tuple[int, int]
    inputs: Any = oracle_inputs


FAMILIES = {
    "qwen2_vl": Family(qwen2_vl, spec_2(), processor_2, (84, 112)),
    "qwen2_5_vl": Family(qwen2_5_vl, tests_25.spec_of("3B"), tests_25.processor, (140, 112)),
    "qwen3_vl": Family(qwen3_vl, tests_3.spec_of("2B"), tests_3.processor, (96, 128), tests_3.inputs_of),
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Pair]:
    family = FAMILIES[request.param]
    folder = write_checkpoint(family.module, family.spec, tmp_path_factory.mktemp("models") / request.param)
    return family, load_pair(family.module, folder, family.processor)


def plan_of(case: tuple[Family, Pair], share: float, **fields: Any) -> Plan:
    family, pair = case
    return made_plan(pair.loaded.model.spec, TIMES, family.size, visual_share=share, **fields)


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


def expected_logits(case: tuple[Family, Pair], plan: Plan, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (vocabulary,) of transformers' decoder over the kept rows, and their positions (3, kept)."""
    family, pair = case
    seconds = {"second_per_grid_ts": torch.tensor([0.5])} if family.module is qwen2_5_vl else {}
    inputs = family.inputs(pair, pictures(plan), rendered(pair), fps=4.0)
    oracle = pair.oracle
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw")
    positions, _ = oracle.model.get_rope_index(**{name: inputs[name] for name in names}, **seconds)
    ids = inputs["input_ids"][0]
    video = ids == VIDEO_TOKEN
    with torch.no_grad():
        seen = oracle.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
        rows = oracle.get_input_embeddings()(ids)
        rows[video] = seen.pooler_output
        more: dict[str, Any] = {}
        if family.spec.deepstack:
            added = [features[kept[video]] for features in seen.deepstack_features]
            more = {"visual_pos_masks": video[kept][None], "deepstack_visual_embeds": added}
        out = oracle.model.language_model(
            inputs_embeds=rows[kept][None], position_ids=positions[:, :, kept], use_cache=False, **more
        )
        logits: Tensor = oracle.lm_head(out.last_hidden_state[0, -1])
    return logits, positions[:, 0, kept]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("offloaded", [False, True], ids=["streamed", "offloaded"])
def test_kept_tokens_answer_as_in_transformers(case: tuple[Family, Pair], share: float, offloaded: bool) -> None:
    spec = case[1].loaded.model.spec
    plan = plan_of(case, share, vision_chunk=3, prefill_chunk=32, placement=Placement(vision_offloaded=offloaded))
    ran = run_prompt(case[1], plan)
    kept = kept_rows(ran, plan, spec)
    logits, positions = expected_logits(case, plan, kept)
    assert torch.equal(ran.positions, positions)
    assert torch.allclose(ran.logits[0], logits, atol=2e-4, rtol=0)
    cached = ran.runner.cached_prompt
    assert cached is not None and cached.cache.length == int(kept.sum())
    text = sum(token != VIDEO_TOKEN for token in ran.ids)
    assert cached.cache.length - text == plan.visual_tokens == kept_visual_tokens(spec, plan.run_config)
    assert plan.visual_tokens < plan.video_tokens


def test_chunks_and_groups_change_nothing(case: tuple[Family, Pair]) -> None:
    runs = [
        run_prompt(case[1], plan_of(case, 0.5, vision_chunk=group, prefill_chunk=chunk))
        for group, chunk in ((1, 7), (3, 64), (8, 10_000))
    ]
    for one in runs[1:]:
        assert torch.equal(one.positions, runs[0].positions)
        assert torch.allclose(one.logits, runs[0].logits, atol=2e-4, rtol=0)


def test_the_whole_share_is_what_it_is_without_pruning(case: tuple[Family, Pair]) -> None:
    plan = plan_of(case, 1.0, vision_chunk=2)
    same = replace(plan, run_config=replace(plan.run_config, drop_repeats=True))  # random pictures repeat nothing
    plain, dropping = run_prompt(case[1], plan), run_prompt(case[1], same)
    assert torch.equal(plain.positions, dropping.positions) and torch.equal(plain.logits, dropping.logits)


def test_a_prompt_again_from_stored_embeddings(case: tuple[Family, Pair]) -> None:
    """As after memory ran out in the prefill: nothing is encoded or chosen again."""
    pair, plan = case[1], plan_of(case, 0.5, vision_chunk=2, prefill_chunk=64)
    ran = run_prompt(pair, plan)
    runner = ran.runner
    runner.cached_prompt = None
    runner._prefill = Prefill(pair.loaded.model, make_kernel("flash", CPU), 16)
    steps = runner.run(None)
    try:
        while True:
            next(steps)
    except StopIteration as finished:
        assert torch.allclose(finished.value, ran.logits, atol=2e-4, rtol=0)


def test_a_forecast_that_was_too_low_is_kept_and_said(case: tuple[Family, Pair]) -> None:
    """Random pictures repeat nothing, and less than half of their tokens are planned for."""
    plan = plan_of(case, 0.4, vision_chunk=2, drop_repeats=True)
    loaded = case[1].loaded
    layout = layout_of(build_prompt(loaded, QUESTION, None), plan, loaded)
    stages = StageContext(Tracker(made_cpu(bf16=False)), Callbacks(lambda: False), PhaseTimer("test"))
    runner = PromptRunner(loaded.model, plan, layout, Prefill(loaded.model, make_kernel("flash", CPU), 64), stages)
    (note,) = [event.text for event in runner.run(MadeFrames(plan)) if isinstance(event, Noted)]  # type: ignore[arg-type]
    embeddings = runner.vision_embeddings
    assert embeddings is not None and embeddings.filled == plan.visual_tokens
    assert note.startswith(f"{plan.video_tokens - plan.visual_tokens} visual tokens that do not repeat")
