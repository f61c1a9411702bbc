"""Every family's scores against the attention weights of transformers' own forward pass, and its selected prompt."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.cases import VIDEO_TOKEN
from tests.families.parity import CPU, QUESTION, SYSTEM, MadeFrames, Pair, made_plan, rendered
from tests.planner.plan_builders import made_cpu
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.frame_focus import FrameFocus, QuestionTokens, question_tokens
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import PromptCursor, build_prompt, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.slice_selection import interleaved
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.models.attention.selector import make_kernel
from vidqa.planner.focus_memory import reference_layer
from vidqa.types import Plan, Request
from vidqa.utils.frame_choice import Sampling, SliceSelection
from vidqa.utils.generators import finished

FRAMES, CANDIDATES, INTERVAL = 8, 24, 0.25
ASKED = Request("clip.mp4", QUESTION, system=SYSTEM)


class Case:
    """A family's tiny checkpoint, a plan with candidates, and the engine's selection from random frames."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.spec = pair, pair.spec
        self.size = (3 * pair.spec.pixel_factor, 4 * pair.spec.pixel_factor)
        self.stages = StageContext(Tracker(made_cpu(bf16=False)), Callbacks(lambda: False), PhaseTimer("test"))
        self.kernel = make_kernel("flash", CPU)
        self.asked = question_tokens(self.pair.loaded, ASKED)

    def plan(self, **fields: Any) -> Plan:
        times = tuple(place * INTERVAL for place in range(CANDIDATES))
        step = CANDIDATES // FRAMES
        fields = {"vision_chunk": 2, "prefill_chunk": 32, "candidate_frames": CANDIDATES} | fields
        plan = made_plan(self.spec, (times[::step], self.size), **fields)
        return replace(plan, candidates=tuple(range(CANDIDATES)), candidate_seconds=times)

    def focus(self, plan: Plan, asked: QuestionTokens | None) -> FrameFocus:
        return FrameFocus(self.pair.loaded, plan, asked, self.kernel, self.stages)


@pytest.fixture
def case(small: Pair) -> Case:
    return Case(small)


def candidate_frames(plan: Plan) -> MadeFrames:
    """A reader of the candidates."""
    run_config = replace(plan.run_config, frames=len(plan.candidates))
    return MadeFrames(replace(plan, run_config=run_config, indices=plan.candidates,
                              timestamps_seconds=plan.candidate_seconds))  # fmt: skip


def selected_plan(case: Case, plan: Plan, asked: QuestionTokens | None) -> tuple[Plan, FrameFocus]:
    focus = case.focus(plan, asked)
    chosen: Plan = finished(focus.run(candidate_frames(plan)))  # type: ignore[arg-type]
    return chosen, focus


def oracle_prompt(case: Case, plan: Plan, ids: list[int], slices: list[int], rows: Tensor) -> tuple[Tensor, Any]:
    """Embeddings (1, n, hidden) of a prompt with some slices' visual rows, and what DeepStack adds."""
    width = case.spec.hidden
    table = case.pair.oracle.get_input_embeddings()
    video = torch.tensor(ids) == VIDEO_TOKEN
    embedded = table(torch.tensor(ids)).clone()
    each = case.spec.slice_tokens(*case.size)
    seen = torch.cat([rows[place * each : (place + 1) * each] for place in slices])
    embedded[video] = seen[:, :width]
    more: dict[str, Any] = {}
    if case.spec.deepstack:
        added = [seen[:, width * (1 + number) :][:, :width] for number in range(case.spec.deepstack)]
        more = {"visual_pos_masks": video[None], "deepstack_visual_embeds": added}
    return embedded[None], more


def ids_of(layout: Any, each: int) -> list[int]:
    return [
        token
        for segment in layout
        for token in getattr(segment, "ids", None) or ([VIDEO_TOKEN] * (getattr(segment, "slices", 0) * each))
    ]


def expected_positions(case: Case, plan: Plan, ids: list[int], places: list[int]) -> Tensor:
    """Positions (3, n): text counts on, a slice is where it would be between all candidates from the first one on."""
    rows, columns = (side // case.spec.pixel_factor for side in case.size)
    each, found, at, slice_number = rows * columns, list[Tensor](), 0, 0
    one_by_one = case.spec.slice_text_tokens > 0  # text stands before each slice, with its time
    place, start = 0, 0
    while place < len(ids):
        if ids[place] != VIDEO_TOKEN:
            found.append(torch.full((3, 1), at))
            at, place = at + 1, place + 1
            continue
        run = 1 if one_by_one else len(places)
        start = at
        for _ in range(run):
            later = 0 if one_by_one else places[slice_number] - places[0]
            if case.spec.vision.tokens_per_second and not one_by_one:
                later = int(later * 2 * INTERVAL * case.spec.vision.tokens_per_second)
            grid = torch.cartesian_prod(torch.tensor([later]), torch.arange(rows), torch.arange(columns)).T + start
            found.append(grid)
            slice_number, place = slice_number + 1, place + each
        at = int(max(one.max() for one in found[-run:])) + 1
    return torch.cat(found, dim=1)


def test_the_questions_tokens_are_those_of_its_text(case: Case) -> None:
    tokenizer = case.pair.loaded.tokenizer
    ids = case.asked.prompt.tail[-case.asked.count :]
    assert tokenizer.decode(list(ids)).strip() == QUESTION
    assert rendered(case.pair).startswith(tokenizer.decode(list(case.asked.prompt.head)))


def test_scores_are_the_attention_of_transformers(case: Case) -> None:
    plan = case.plan()
    _, focus = selected_plan(case, plan, None)  # encodes
    assert focus.embeddings is not None
    selection: SliceSelection = finished(scored(case, plan, focus))
    layer, each = reference_layer(case.spec), case.spec.slice_tokens(*case.size)
    slices = CANDIDATES // 2
    expected = [0.0] * slices
    case.pair.oracle.set_attn_implementation("eager")
    for part in interleaved(slices, 4):
        window = focus._plan_of(part)
        ids = ids_of(layout_of(case.asked.prompt, window, case.pair.loaded), each)
        embedded, more = oracle_prompt(case, window, ids, list(part), focus.embeddings.rows)
        positions = expected_positions(case, window, ids, list(part))
        with torch.no_grad():
            out = case.pair.oracle.model.language_model(
                inputs_embeds=embedded, position_ids=positions[:, None], use_cache=False, output_attentions=True, **more
            )
        weights = out.attentions[layer][0, :, -case.asked.count :].mean((0, 1))  # (heads, queries, keys)
        of_video = weights[torch.tensor(ids) == VIDEO_TOKEN].view(len(part), each).sum(1)
        for place, mass in zip(part, of_video.tolist(), strict=True):
            expected[place] = mass * len(part)
    case.pair.oracle.set_attn_implementation("sdpa")
    assert torch.allclose(torch.tensor(selection.scores), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert len(set(selection.scores)) == slices  # each has its own
    assert selection.chosen == tuple(sorted(set(selection.chosen))) and len(selection.chosen) == FRAMES // 2


def scored(case: Case, plan: Plan, encoded: FrameFocus) -> Any:
    """The steps of a selection from embeddings that are there."""
    return FrameFocus(case.pair.loaded, plan, case.asked, case.kernel, case.stages, encoded.embeddings).select()


def test_selected_frames_are_read_at_their_own_positions(case: Case) -> None:
    """The prompt of the selected slices against transformers' decoder over the same rows at the true positions."""
    chosen, focus = selected_plan(case, case.plan(), case.asked)
    assert focus.embeddings is not None and chosen.selection is not None
    slices = list(chosen.selection.chosen)
    loaded, each = case.pair.loaded, case.spec.slice_tokens(*case.size)
    layout = layout_of(build_prompt(loaded, QUESTION, SYSTEM), chosen, loaded)
    prefill = Prefill(loaded.model, case.kernel, 32)
    runner = PromptRunner(loaded.model, chosen, layout, prefill, case.stages, focus.selected(chosen))
    logits = finished(runner.run(None))
    ids = ids_of(layout, each)
    embedded, more = oracle_prompt(case, chosen, ids, slices, focus.embeddings.rows)
    positions = expected_positions(case, chosen, ids, slices)
    with torch.no_grad():
        out = case.pair.oracle.model.language_model(
            inputs_embeds=embedded, position_ids=positions[:, None], use_cache=False, **more
        )
        wanted = case.pair.oracle.lm_head(out.last_hidden_state[0, -1])
    assert torch.allclose(logits[0], wanted, atol=2e-4, rtol=0)
    assert runner.next_position == int(positions.max()) + 1
    times = [place * INTERVAL for slice_ in slices for place in (2 * slice_, 2 * slice_ + 1)]
    assert list(chosen.timestamps_seconds) == times and chosen.indices == chosen.frame_places


def test_scores_do_not_depend_on_chunks_and_groups(case: Case) -> None:
    runs = [
        selected_plan(case, case.plan(vision_chunk=group, prefill_chunk=chunk), case.asked)[0].selection
        for group, chunk in ((1, 7), (3, 32))
    ]
    first, second = runs
    assert first is not None and second is not None and first.chosen == second.chosen
    assert torch.allclose(torch.tensor(first.scores), torch.tensor(second.scores), atol=1e-5, rtol=1e-4)


def test_all_candidates_at_once_are_what_a_plan_of_them_reads(case: Case) -> None:
    """Where every candidate is selected, the prompt is that of an even plan of them."""
    plan = case.plan()
    _, focus = selected_plan(case, plan, None)
    everything = focus._plan_of(range(CANDIDATES // 2))
    even = replace(everything, frame_places=(), candidate_seconds=(), candidates=())
    logits = []
    for one in (everything, even):
        layout = layout_of(build_prompt(case.pair.loaded, QUESTION, SYSTEM), one, case.pair.loaded)
        prefill = Prefill(case.pair.loaded.model, case.kernel, 64)
        embeddings = focus.selected(everything)
        runner = PromptRunner(case.pair.loaded.model, one, layout, prefill, case.stages, embeddings)
        logits.append(finished(runner.run(None)))
        assert runner.cached_prompt is not None
    assert torch.allclose(*logits, atol=1e-5, rtol=0)


def test_uneven_candidates_keep_the_positions_of_their_own_times(case: Case) -> None:
    """Where a family's positions follow the time, those of selected slices do too (`--sample change`)."""
    plan = case.plan()
    times = tuple(place * INTERVAL if place < 12 else 3 + (place - 12) * 2 * INTERVAL for place in range(CANDIDATES))
    plan = replace(plan, candidate_seconds=times, sampling=Sampling("change", "it changes there"))
    _, focus = selected_plan(case, plan, None)
    chosen = focus._plan_of((2, 5, 7, 11))
    layout = layout_of(build_prompt(case.pair.loaded, QUESTION, SYSTEM), chosen, case.pair.loaded)
    cursor = PromptCursor(case.pair.loaded.model, layout[:-1], chosen)
    cursor.text()
    parts = [part for _ in range(4) for part in cursor.take(1)]
    firsts = [int(part.positions[0, 0]) for part in parts]
    if case.spec.vision.tokens_per_second and not case.spec.slice_text_tokens:
        # means of slices: 1.125, 2.625, 4.25 and 8.25 s; two positions a second from the first one on
        assert [first - firsts[0] for first in firsts] == [0, 3, 6, 14]
    elif not case.spec.slice_text_tokens:
        assert [first - firsts[0] for first in firsts] == [0, 3, 5, 9]
    else:
        assert firsts == sorted(set(firsts))
    assert cursor.finish() > firsts[-1]
