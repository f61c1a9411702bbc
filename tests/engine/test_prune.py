"""Questions to the demo model with dropped tokens: true answers, planned memory, follow-ups, batches and fallbacks."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.asking import ANSWER, CLIP, COLOR, CONFIG, EMPTY, QUESTION, TWO_EVENTS, answer_in, ask, stages_of
from tests.engine.test_fallback import failing
from vidqa import EngineConfig, Request, Session
from vidqa.cli.json_output import answer_object
from vidqa.events import Answered, Degraded
from vidqa.types import Answer, Placement, Plan, Turn


def answered(config: EngineConfig, **how: Any) -> Answer:
    with Session(config) as session:
        return ask(session, **how)


def dropping(prune: Any, **fields: Any) -> EngineConfig:
    return replace(CONFIG, prune=prune, **fields)


def test_off_and_the_whole_share_are_the_same_plan_and_answer() -> None:
    off, whole = answered(CONFIG), answered(dropping(1.0))
    assert off.plan.kept_tokens == whole.plan.kept_tokens == ()
    assert (off.text, off.plan.run_config) == (whole.text, whole.plan.run_config)
    assert [line for line in off.plan.lines if line.kind == "tensors"] == [
        line for line in whole.plan.lines if line.kind == "tensors"
    ]
    assert off.plan.visual_tokens == off.plan.video_tokens
    assert answer_object(off)["plan"]["pruning"] is None


@pytest.mark.parametrize("clip", [CLIP, TWO_EVENTS, COLOR, EMPTY])
def test_auto_answers_as_without_and_keeps_fewer(clip: str) -> None:
    plain, pruned = answered(CONFIG, video=clip), answered(dropping("auto"), video=clip)
    assert pruned.text == plain.text
    kept, whole = pruned.plan.kept_tokens, pruned.plan.video_tokens
    assert sum(kept) == pruned.plan.visual_tokens < whole == plain.plan.visual_tokens
    assert kept[0] == pruned.plan.slice_tokens == whole // len(kept)
    assert pruned.plan.prompt_tokens == plain.plan.prompt_tokens - whole + sum(kept)


def tensors_of(plan: Plan, phase: str) -> int:
    return plan.phase_bytes[phase] - plan.runtime_bytes


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_share_is_kept_exactly_as_planned_in_less_memory(share: float) -> None:
    how: dict[str, Any] = {"frames": 16, "size": (280, 280)}
    plain, pruned = answered(CONFIG, **how), answered(dropping(share), **how)
    plan = pruned.plan
    assert sum(plan.kept_tokens) == plan.visual_tokens == int(share * plan.video_tokens)
    assert plan.kv_capacity_tokens < plain.plan.kv_capacity_tokens
    assert pruned.memory.kv_bytes < plain.memory.kv_bytes
    for phase in ("prefill", "decode"):  # in the vision phase a group is there before and after its tokens are dropped
        assert tensors_of(plan, phase) < tensors_of(plain.plan, phase)
    assert plan.seconds.prefill_seconds < plain.plan.seconds.prefill_seconds
    assert plan.seconds.vision_seconds == pytest.approx(plain.plan.seconds.vision_seconds)
    assert pruned.memory.tensor_peak_bytes is not None
    assert pruned.memory.tensor_peak_bytes <= plan.tensor_bytes


@pytest.mark.parametrize("prune", [0.5, "auto"])
def test_chunks_and_groups_keep_the_same_tokens(prune: Any) -> None:
    answers = [
        answered(dropping(prune, vision_chunk=group, prefill_chunk=chunk))
        for group, chunk in ((1, 7), (3, 64), (9, 99))
    ]
    assert len({(one.text, one.plan.kept_tokens) for one in answers}) == 1
    assert answers[0].text == ANSWER


@pytest.mark.parametrize("fields", [{"kv": "int8"}, {"placement": Placement(vision_offloaded=True)}], ids=str)
def test_caches_and_placements(fields: dict[str, Any]) -> None:
    usual, other = answered(dropping("auto")), answered(dropping("auto", **fields))
    assert (other.text, other.plan.kept_tokens) == (ANSWER, usual.plan.kept_tokens)


def test_a_follow_up_reads_no_video_and_answers_as_a_new_question() -> None:
    history = (Turn(QUESTION, ANSWER),)
    request = Request(CLIP, "what color is it?", history=history)
    with Session(dropping("auto", conversation_tokens=256)) as session:
        ask(session)
        events = list(session.ask(request))
        session.forget()
        anew = ask(session, request)
    follow_up = answer_in(events)
    assert stages_of(events) == ["prefill", "decode"]
    assert (follow_up.text, follow_up.plan.kept_tokens) == (anew.text, anew.plan.kept_tokens)
    assert follow_up.text == "red."


def test_another_system_prompt_uses_the_kept_embeddings_again() -> None:
    with Session(dropping(0.6, conversation_tokens=256)) as session:
        ask(session)
        events = list(session.ask(Request(CLIP, QUESTION, system="Answer in English.")))
        session.forget()
        anew = ask(session, Request(CLIP, QUESTION, system="Answer in English."))
    assert "vision" not in stages_of(events)
    assert (answer_in(events).text, answer_in(events).plan.kept_tokens) == (anew.text, anew.plan.kept_tokens)


def test_a_batch_answers_as_each_alone() -> None:
    clips = (CLIP, TWO_EVENTS, CLIP)
    questions = (QUESTION, QUESTION, "what color is it?")
    alone = [answered(dropping("auto"), video=clip, question=one) for clip, one in zip(clips, questions, strict=True)]
    together: dict[int, Answer] = {}
    with Session(dropping("auto")) as session:
        requests = [Request(clip, one) for clip, one in zip(clips, questions, strict=True)]
        for number, event in session.ask_many(requests):
            if isinstance(event, Answered):
                together[number] = event.answer
    for number, one in enumerate(alone):
        assert (together[number].text, together[number].plan.kept_tokens) == (one.text, one.plan.kept_tokens)


def test_every_answer_of_a_batch_says_that_new_tokens_were_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecast is far too low. Two questions about one clip look at it once."""
    monkeypatch.setattr("vidqa.planner.search.shares_of_counts", lambda problem, counts, indices: (0.2,) * len(counts))
    alone = answered(dropping("auto"), video=TWO_EVENTS)
    (note,) = (note for note in alone.notes if "that do not repeat were dropped" in note)
    requests = [Request(TWO_EVENTS, QUESTION), Request(CLIP, QUESTION), Request(TWO_EVENTS, "what color is it?")]
    with Session(dropping("auto")) as session:
        together = {number: event.answer for number, event in session.ask_many(requests) if isinstance(event, Answered)}
    assert together[0].plan.kept_tokens == alone.plan.kept_tokens
    assert together[0].notes.count(note) == together[2].notes.count(note) == 1 and note not in together[1].notes


def test_notes_on_dropped_tokens_hold_for_the_frames_that_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.planner.search.shares_of_counts", lambda problem, counts, indices: (0.4,) * len(counts))
    for times, reads in ((1, 1), (2, 2)):  # an int8 cache for the same frames, then half of the tokens
        with Session(dropping("auto"), fault=failing("decode", times=times)) as session:
            events = list(session.ask(Request(TWO_EVENTS, QUESTION)))
        answer = answer_in(events)
        assert stages_of(events).count("vision") == reads
        notes = [note for note in answer.notes if "dropped" in note]
        assert len(notes) == 1 and f"of the planned {answer.plan.visual_tokens:,} were kept" in notes[0]


@pytest.mark.parametrize("prune", [0.6, "auto"])
def test_after_memory_ran_out_the_kept_embeddings_go_on(prune: Any) -> None:
    with Session(dropping(prune), fault=failing("decode", times=1)) as session:
        events = list(session.ask(Request(CLIP, QUESTION)))
    answer, usual = answer_in(events), answered(dropping(prune))
    assert any(isinstance(event, Degraded) for event in events)
    assert stages_of(events).count("vision") == 1
    assert answer.plan.kept_tokens == usual.plan.kept_tokens
    if prune == "auto":  # the answers to a share are not sure enough for an int8 cache
        assert answer.text == usual.text == ANSWER


def test_json_has_kept_and_dropped_tokens_of_every_slice() -> None:
    answer = answered(dropping("auto"))
    pruning = json.loads(json.dumps(answer_object(answer)))["plan"]["pruning"]
    assert pruning["mode"] == "auto" and pruning["planned_share"] == 1.0
    each = pruning["video_tokens"] // len(pruning["kept_per_slice"])
    assert pruning["kept_per_slice"][0] == each and sum(pruning["dropped_per_slice"]) > 0
    assert [sum(pair) for pair in zip(pruning["kept_per_slice"], pruning["dropped_per_slice"], strict=True)] == [
        each
    ] * len(pruning["kept_per_slice"])
