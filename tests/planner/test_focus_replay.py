"""Planned memory of a question that selects its frames against the real modules under fake tensors.

Each replay asks twice: the second question scores the parked embeddings beside the first one's KV cache.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.planner.plan_builders import made_device, made_run_config, plan_of
from tests.planner.test_replay import CUDA, HEAD, MIB, BlankFrames
from tests.replay import Replay, replayed
from vidqa.devices.memory_tracker import TensorMeter, Tracker
from vidqa.engine import frame_focus
from vidqa.engine.frame_focus import FrameFocus, QuestionTokens
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import PromptTokens, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.models.attention.selector import make_kernel
from vidqa.models.hub import demo_folder
from vidqa.models.registry import released
from vidqa.models.spec import ModelSpec
from vidqa.planner.focus_memory import focus_parts, parked_bytes
from vidqa.planner.memory_model import tensor_bytes
from vidqa.types import Placement, Plan, RunConfig
from vidqa.utils.generators import finished

MODELS = ("Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-4B-Instruct")
ROWS, COLUMNS = 6, 8  # tokens of a slice
ASKED = 12  # the question's tokens


def shallow(name: str) -> ModelSpec:
    spec = released()[name]
    tower = replace(spec.vision, depth=4, full_attention=(1,) if spec.vision.window else ())
    return replace(spec, layers=6, vision=replace(tower, deepstack_blocks=(0, 1, 2)[: spec.deepstack]))


def focused_plan(spec: ModelSpec, **fields: Any) -> Plan:
    factor = spec.pixel_factor
    run_config = made_run_config(
        height=ROWS * factor, width=COLUMNS * factor, **{"frames": 16, "candidate_frames": 48} | fields
    )
    plan, many = plan_of(run_config, spec), tuple(range(run_config.candidate_frames))
    return replace(plan, candidates=many, candidate_seconds=tuple(map(float, many)))


def run_phases(replay: Replay, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The replayed peaks by phase of two questions about the same candidates."""
    monkeypatch.setattr(frame_focus, "on_host", lambda numbers: [float(row % 7) for row in range(len(numbers))])
    tracker = Tracker(made_device(80), TensorMeter(replay.live))
    stages = StageContext(tracker, Callbacks(lambda: False), PhaseTimer("replayed"))
    model, kernel = replay.model, make_kernel(plan.run_config.attention, CUDA)
    loaded: Any = SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(demo_folder()))
    tail = tuple(range(plan.run_config.text_tokens - HEAD))
    prompt = PromptTokens(tuple(range(HEAD)), tail)
    asked = QuestionTokens(PromptTokens(prompt.head, tail[:-5]), ASKED)
    embeddings, runner = None, None
    with replay.vision_can_be_offloaded():
        for _ in range(2):
            focus = FrameFocus(loaded, plan, asked, kernel, stages, embeddings)
            reader: Any = BlankFrames(plan.run_config)
            chosen = finished(focus.run(reader))
            embeddings = focus.embeddings
            layout = layout_of(prompt, chosen, loaded)
            prefill = Prefill(model, kernel, plan.run_config.prefill_chunk)
            runner = None  # as in a session, where the selection differs
            runner = PromptRunner(model, chosen, layout, prefill, stages, focus.selected(chosen))
            finished(runner.run(None))
    assert runner is not None and embeddings is not None
    assert embeddings.rows.device.type == "cpu"
    assert embeddings.rows.numel() * 2 == parked_bytes(model.spec, plan.run_config)
    return {use.name: use.peak_bytes for use in tracker.phases}


def check(spec: ModelSpec, run_config: RunConfig, peaks: dict[str, int]) -> None:
    planned = tensor_bytes(spec, run_config)
    for phase in ("vision", "prefill"):
        assert peaks[phase] <= planned[phase], phase
        # The attention of the question is beside a smaller chunk than is planned for.
        assert planned[phase] <= peaks[phase] * 1.02 + 4 * MIB, (phase, planned[phase] / MIB, peaks[phase] / MIB)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("chunk", "group"),
    [pytest.param(128, 1, marks=pytest.mark.long), pytest.param(512, 2, marks=pytest.mark.long), (1024, 8)],
)
def test_both_questions_take_what_is_planned(
    name: str, chunk: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = shallow(name)
    plan = focused_plan(spec, prefill_chunk=chunk, vision_chunk=group)
    with replayed(spec, "bf16") as replay:
        peaks = run_phases(replay, plan, monkeypatch)
    check(spec, plan.run_config, peaks)


@pytest.mark.parametrize("fields", [{"kv": "int8"}, {"placement": Placement(vision_offloaded=True)}], ids=str)
def test_other_caches_and_placements(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = shallow(MODELS[0])
    plan = focused_plan(spec, **fields)
    with replayed(spec, "bf16", plan.run_config.placement) as replay:
        peaks = run_phases(replay, plan, monkeypatch)
    assert peaks["prefill"] <= tensor_bytes(spec, plan.run_config)["prefill"]


def test_memory_does_not_grow_with_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = shallow(MODELS[0])
    peaks = []
    for count in (40, 120):  # parts of 10 slices both
        plan = focused_plan(spec, candidate_frames=count)
        with replayed(spec, "bf16") as replay:
            peaks.append(run_phases(replay, plan, monkeypatch))
        assert sum(size for _, size, _ in focus_parts(spec, plan.run_config)) < 40 * MIB
    assert peaks[0] == peaks[1]
