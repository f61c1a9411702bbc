"""Each field of a plan changes what the engine runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch

from tests.demos import QWEN2_DEMO
from tests.engine.asking import CLIP, QUESTION
from tests.engine.test_parity import finish
from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import find_device
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine import model_manager
from vidqa.engine.attempt import Attempt, AttemptResult
from vidqa.engine.detokenizer import AnswerState
from vidqa.engine.kv_cache import make_cache
from vidqa.engine.prompt import build_prompt
from vidqa.engine.timers import Callbacks, Clock, Stopwatch
from vidqa.events import Event, StageProgress, StageStarted
from vidqa.models.checkpoint import read_spec
from vidqa.models.families.qwen2_vl import read_bounds
from vidqa.models.loader import Loaded, load_model
from vidqa.models.registry import Checkpoint
from vidqa.planner.memory_model import kv_bytes
from vidqa.planner.weight_memory import parameters, part_bytes
from vidqa.types import Placement, Plan, RunConfig
from vidqa.video.reader import open_video

CPU = torch.device("cpu")
SPEC = read_spec(QWEN2_DEMO)


@dataclass(frozen=True)
class Ran:
    """What one plan did."""

    events: list[Event]
    result: AttemptResult
    loaded: Loaded
    text: str

    def steps(self, stage: str) -> int:
        """The number of a stage's progress events."""
        return sum(isinstance(event, StageProgress) and event.stage == stage for event in self.events)

    def total(self, stage: str) -> int:
        """How many units a stage announced."""
        return next(event.total for event in self.events if isinstance(event, StageStarted) and event.stage == stage)


@contextmanager
def moved(visual: Any) -> Iterator[list[torch.device]]:
    """Note where the vision tower is sent."""
    sent: list[torch.device] = []
    original = visual.to

    def to(device: Any) -> Any:
        sent.append(torch.device(device))
        return original(device)

    visual.to = to
    try:
        yield sent
    finally:
        del visual.to


def attempt(loaded: Loaded, plan: Plan) -> tuple[Attempt, AnswerState]:
    answer, callbacks = AnswerState(Request(CLIP, QUESTION)), Callbacks(lambda: False)
    prompt, tracker = build_prompt(loaded, QUESTION, None), Tracker(find_device("cpu"))
    return Attempt(loaded, plan, prompt, answer, tracker, callbacks, Clock(Stopwatch())), answer


def run(plan: Plan) -> Ran:
    """Load the model and run a plan, without a session."""
    run_config = plan.run_config
    loaded = load_model(QWEN2_DEMO, CPU, run_config.weights, run_config.dtype, run_config.placement)
    one, answer = attempt(loaded, plan)
    with open_video(CLIP, isolated=False) as reader:
        events, result = finish(one.run(reader))
    return Ran(events, result, loaded, answer.text)


def with_config(plan: Plan, **how: Any) -> Plan:
    """The plan with another run config, and the frames that belong to them."""
    run_config = replace(plan.run_config, **how)
    indices = plan.indices[:: len(plan.indices) // run_config.frames][: run_config.frames]
    spec_tokens = run_config.frames // 2 * (run_config.height // 28) * (run_config.width // 28)
    text = plan.prompt_tokens - plan.visual_tokens
    return replace(
        plan, run_config=run_config, indices=indices, visual_tokens=spec_tokens, prompt_tokens=text + spec_tokens
    )


@pytest.fixture(scope="module")
def plain() -> Plan:
    with Session(EngineConfig(model=str(QWEN2_DEMO), isolate_decoder=False, weights="fp32")) as session:
        return session.plan(Request(CLIP, QUESTION))


@pytest.fixture(scope="module")
def usual(plain: Plan) -> Ran:
    return run(plain)


def test_the_usual_plan_answers(usual: Ran, plain: Plan) -> None:
    assert usual.text == "a red circle moves right."
    assert usual.result.plan.indices == plain.indices
    assert usual.loaded.model.weights_bytes == 4 * parameters(usual.loaded.model.spec)


@pytest.mark.parametrize(("frames", "size"), [(4, (112, 140)), (8, (84, 84)), (2, (140, 168))])
def test_frames_height_and_width(plain: Plan, frames: int, size: tuple[int, int]) -> None:
    ran = run(with_config(plain, frames=frames, height=size[0], width=size[1]))
    assert ran.total("video") == frames
    assert ran.result.plan.visual_tokens == frames // 2 * size[0] * size[1] // 784


def test_indices_are_the_frames_that_are_read(plain: Plan) -> None:
    ran = run(replace(plain, indices=tuple(range(8))))
    assert ran.result.plan.timestamps_seconds == pytest.approx([index / 24 for index in range(8)])


@pytest.mark.parametrize(("chunk", "groups"), [(1, 4), (2, 2), (8, 1)])
def test_vision_chunk(plain: Plan, chunk: int, groups: int) -> None:
    assert run(with_config(plain, vision_chunk=chunk)).steps("vision") == groups


@pytest.mark.parametrize(("chunk", "passes"), [(16, 7), (64, 3), (1024, 2)])
def test_prefill_chunk(plain: Plan, chunk: int, passes: int) -> None:
    """The ids before the video are a pass of their own: they are read while its first frames are decoded."""
    assert run(with_config(plain, prefill_chunk=chunk)).steps("prefill") == passes


def test_max_tokens(plain: Plan) -> None:
    ran = run(with_config(plain, max_tokens=2))
    assert (ran.steps("decode"), ran.result.reason) == (2, "length")


def test_kv_capacity(plain: Plan, usual: Ran) -> None:
    ran = run(replace(plain, kv_capacity_tokens=plain.kv_capacity_tokens * 2))
    assert ran.result.kv_bytes == 2 * usual.result.kv_bytes == 2 * kv_bytes(usual.loaded.model.spec, plain.run_config)


def test_spare_tokens(plain: Plan) -> None:
    config = EngineConfig(model=str(QWEN2_DEMO), isolate_decoder=False, conversation_tokens=640, weights="fp32")
    with Session(config) as session:
        roomy = session.plan(Request(CLIP, QUESTION))
    assert roomy.run_config.spare_tokens == 640
    assert roomy.kv_capacity_tokens - plain.kv_capacity_tokens == 640


def test_kv_precision_and_place(plain: Plan, usual: Ran) -> None:
    small = run(with_config(plain, kv="int8"))
    spec = usual.loaded.model.spec
    one_layer = usual.result.kv_bytes // spec.layers
    assert small.result.kv_bytes == kv_bytes(spec, replace(plain.run_config, kv="int8")) + one_layer
    away = run(with_config(plain, placement=Placement(kv_on_host=True)))
    assert away.result.kv_bytes == usual.result.kv_bytes + one_layer
    assert small.text == away.text == usual.text


@pytest.mark.parametrize("weights", ["bf16", "int8", "nf4", "nf4-dq"])
def test_weights(plain: Plan, usual: Ran, weights: str) -> None:
    dtype = "bf16" if weights == "bf16" else "fp32"
    run_config = replace(plain.run_config, weights=weights, dtype=dtype, kv=dtype)
    ran = run(replace(plain, run_config=run_config))
    assert ran.loaded.model.weights_bytes < usual.loaded.model.weights_bytes
    spec = ran.loaded.model.spec
    parts = ("embedding", "layers", "vision")  # lm_head is the embedding table here
    planned = sum(part_bytes(spec, part, weights, dtype, Placement()) for part in parts)
    assert ran.loaded.model.weights_bytes <= planned <= ran.loaded.model.weights_bytes + 512 * 250
    assert ran.text.startswith("a ")


def test_dtype(plain: Plan) -> None:
    run_config = replace(plain.run_config, weights="bf16", dtype="bf16", kv="bf16")
    ran = run(replace(plain, run_config=run_config))
    assert ran.loaded.model.dtype == torch.bfloat16
    assert ran.text == "a red circle moves right."


@pytest.mark.parametrize("attention", ["flash", "flex"])
def test_attention(plain: Plan, usual: Ran, attention: str) -> None:
    assert attempt(usual.loaded, with_config(plain, attention=attention))[0].kernel.name == attention


def test_quantized_vision_tower_and_lm_head(plain: Plan) -> None:
    run_config = replace(plain.run_config, weights="nf4", dtype="fp32", kv="fp32")
    alone = run(replace(plain, run_config=run_config)).loaded.model
    both = run(replace(plain, run_config=replace(run_config, placement=Placement(vision_quantized=True)))).loaded.model
    assert both.weights_bytes < alone.weights_bytes - 1_000_000
    assert type(both.visual.blocks[0].mlp.fc1).__name__ == "Linear4bit"  # type: ignore[index, union-attr]


def test_the_vision_tower_is_offloaded_by_the_plan(usual: Ran, plain: Plan) -> None:
    for offloaded, moves in ((False, 1), (True, 2)):
        one, _ = attempt(usual.loaded, with_config(plain, placement=Placement(vision_offloaded=offloaded)))
        with open_video(CLIP, isolated=False) as reader, moved(usual.loaded.model.visual) as sent:
            list(one.run(reader))
        assert len(sent) == moves


def test_int8_keys_are_close_to_whole_ones() -> None:
    spec = SPEC
    torch.manual_seed(0)
    caches = [make_cache(spec, 64, torch.float32, CPU, quantized=quantized) for quantized in (False, True)]
    keys, values = torch.randn(40, spec.kv_heads, spec.head_dim), torch.randn(40, spec.kv_heads, spec.head_dim)
    whole, small = (cache.write(1, keys, values)[:, :, :40] for cache in caches)
    for exact, rounded in zip(whole, small, strict=True):
        scale = exact.abs().amax(dim=-1, keepdim=True) / 127
        assert ((exact - rounded).abs() <= 0.51 * scale * 1.001).all()
    assert not caches[1].write(1, keys[:0], values[:0]).isnan().any()


@pytest.mark.parametrize(("share", "drop_repeats", "kept"), [(0.5, False, 40), (1.0, True, None)])
def test_visual_share_and_drop_repeats(plain: Plan, share: float, drop_repeats: bool, kept: int | None) -> None:
    pruned = with_config(plain, visual_share=share, drop_repeats=drop_repeats)
    ran = run(replace(pruned, visual_tokens=kept or pruned.visual_tokens))
    assert sum(ran.result.plan.kept_tokens) == ran.result.plan.visual_tokens
    assert ran.result.plan.visual_tokens == kept or ran.result.plan.visual_tokens < plain.visual_tokens == 80


def test_every_field_of_a_run_config_is_tested() -> None:
    tried = {
        "frames", "height", "width", "vision_chunk", "prefill_chunk", "max_tokens", "kv", "weights", "dtype",
        "attention", "placement", "spare_tokens", "visual_share", "drop_repeats",
        "candidate_frames",  # in test_focus.py
    }  # fmt: skip
    # The prompt itself says how long it is, one request is one sequence, and its temperature says whether it samples;
    # the model is on its device.
    only_predicted = {"text_tokens", "subtitle_tokens", "batch", "sampled", "device"}
    assert {field.name for field in fields(RunConfig)} == tried | only_predicted


def test_auto_stays_with_the_model_that_is_loaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = QWEN2_DEMO
    small = Checkpoint("small", SPEC, read_bounds(folder, SPEC), folder)
    large = replace(small, name="large", spec=replace(small.spec, layers=400))
    offered = [[small], [small, large]]
    monkeypatch.setattr(model_manager, "find_checkpoints", lambda name, *, local: offered.pop(0))
    with Session(EngineConfig(model="auto", isolate_decoder=False)) as session:
        answers = []
        for _ in range(2):
            *_, last = session.ask(Request(CLIP, QUESTION))
            answers.append(last.answer)  # type: ignore[union-attr]
    assert [answer.plan.model for answer in answers] == ["small", "small"]
    assert len(offered) == 1  # the second question asked for no other
