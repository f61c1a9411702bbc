"""Several requests at once: each answer as it would be alone, and each failure its own."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.asking import ANSWER, CLIP, COLOR, CONFIG, EMPTY, QUESTION, TWO_EVENTS, ask
from tests.engine.test_fallback import failing
from tests.engine.test_parity import prompt_tensors
from tests.engine.test_static_decode_step import CPU, GRIDS, prefilled, room
from tests.tiny import pair, random_patches
from vidqa import Request, Session
from vidqa.engine.attempt import Attempt
from vidqa.engine.batch_runner import BatchRunner
from vidqa.engine.decode import decode_batch
from vidqa.engine.decode_runners import CudaGraphDecoder
from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prefill import Prefill
from vidqa.engine.sampler import Sampler
from vidqa.errors import Interrupted, ModelError, NotFinite, VideoNotFound
from vidqa.events import Answered, Event, Failed, StageStarted
from vidqa.models.attention.selector import make_kernel
from vidqa.types import Answer, Plan
from vidqa.video.reader import VideoReader, open_video

CLIPS = [CLIP, TWO_EVENTS, COLOR, EMPTY]
REQUESTS = [
    Request(CLIPS[0], QUESTION), Request(CLIPS[1], QUESTION, max_tokens=6), Request(CLIPS[0], "what color is it?"),
    Request(CLIPS[2], "what happens?", frames=4), Request(CLIPS[3], QUESTION),
    Request(CLIPS[0], "which way does it move?"),
]  # fmt: skip


def many(
    session: Session, requests: list[Request]
) -> tuple[dict[int, Answer], dict[int, Failed], list[tuple[int, Event]]]:
    events = list(session.ask_many(requests))
    answers = {number: event.answer for number, event in events if isinstance(event, Answered)}
    return answers, {number: event for number, event in events if isinstance(event, Failed)}, events


def alone(session: Session, request: Request) -> Answer:
    session.forget()
    return ask(session, request)


def test_each_answer_is_what_it_would_be_alone() -> None:
    with Session(CONFIG) as session:
        answers, failed, events = many(session, REQUESTS)
        singles = [alone(session, request) for request in REQUESTS]
    assert not failed
    for number, single in enumerate(singles):
        ours = answers[number]
        assert (ours.text, ours.finish_reason, ours.timing.tokens) == (
            single.text, single.finish_reason, single.timing.tokens,
        )  # fmt: skip
        assert ours.plan.indices == single.plan.indices
    assert answers[0].text == ANSWER and answers[1].finish_reason == "length"
    seen = [number for number, event in events if isinstance(event, StageStarted) and event.stage == "vision"]
    assert seen == [0, 1, 3, 4]  # three questions about one video look at it once


def test_sampling_uses_each_requests_seed_and_temperature() -> None:
    requests = [Request(CLIPS[0], QUESTION, temperature=9.0, seed=seed, max_tokens=12) for seed in (1, 2, 3)]
    requests += [REQUESTS[0]]
    with Session(replace(CONFIG, weights="fp32")) as session:  # a batch rounds bf16 otherwise than one row
        answers, failed, _ = many(session, requests)
        assert [answers[number].text for number in range(4)] == [alone(session, one).text for one in requests]
    assert not failed and len({answer.text for answer in answers.values()}) > 2


def test_an_answer_that_fills_its_cache_ends() -> None:
    """The row that ends first has no place left behind its last token; the others still write."""
    models = pair("2B")
    storage = room(models, 2)
    caches, positions, logits = prefilled(models, storage)
    caches[0].length = storage.capacity - 2
    runner = CudaGraphDecoder(models.ours, caches, positions, [Sampler(0, 1, 0)] * 2, None)
    events = list(decode_batch(runner, torch.stack(logits), frozenset(), [3, 20]))
    assert [token for row, token in events if row == 0][-1] == "length" and len(events) == 25


def test_a_request_that_fails_leaves_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    requests = [REQUESTS[0], Request(str(broken), QUESTION), Request(str(tmp_path / "none.mp4"), QUESTION),
                Request(CLIPS[0], QUESTION, start_seconds=1000.0), REQUESTS[2]]  # fmt: skip
    with Session(CONFIG) as session:
        answers, failed, _ = many(session, requests)
    assert sorted(answers) == [0, 4] and sorted(failed) == [1, 2, 3]
    assert answers[0].text == ANSWER and answers[4].text == "red."
    assert "broken.mp4" in str(failed[1].error)


def test_a_video_that_breaks_off_leaves_the_others(tmp_path: Path) -> None:
    """Its first frames are in the cache and in the queue already."""
    whole = Path(CLIPS[1]).read_bytes()
    cut = tmp_path / "cut.mp4"
    moov = whole.find(b"moov")
    damaged = bytearray(whole)
    start = whole.find(b"mdat") + 4 if whole.find(b"mdat") > moov else moov
    for place in range(start + (len(whole) - start) // 8, len(whole)):
        damaged[place] = 0
    cut.write_bytes(damaged)
    with Session(CONFIG) as session:
        answers, failed, _ = many(session, [REQUESTS[0], Request(str(cut), QUESTION), REQUESTS[2]])
    assert {0, 2} <= set(answers) and set(answers) | set(failed) == {0, 1, 2}
    assert answers[0].text == ANSWER and answers[2].text == "red."


@pytest.mark.parametrize("phase", ["vision", "prefill"])
def test_what_does_not_fit_together_is_answered_in_smaller_groups(phase: str) -> None:
    with Session(CONFIG, fault=failing(phase, times=2, after=3)) as session:
        answers, failed, _ = many(session, REQUESTS)
    assert not failed and answers[0].text == ANSWER and answers[2].text == "red."


@pytest.mark.parametrize("group", [1, 3])
def test_a_model_that_can_answer_none_ends_a_group_of_any_size(group: int, tmp_path: Path) -> None:
    config = replace(CONFIG, model=str(tmp_path))
    with Session(config) as session, pytest.raises(ModelError, match="holds no model"):
        list(session.ask_many(REQUESTS[:group]))


def test_scores_that_are_not_finite_fail_their_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone_ = BatchRunner._logits, Attempt._decode

    def overflows(plan: Plan) -> bool:
        return plan.run_config.max_tokens == 7  # marks the request

    def batch_logits(self: BatchRunner, active: Sequence[int]) -> torch.Tensor:
        logits = together(self, active)
        logits[[row for row in active if overflows(self._items[row].plan)]] = torch.nan
        return logits

    def decode(self: Attempt, logits: torch.Tensor, cache: KVCache) -> Any:
        return alone_(self, logits * torch.nan if overflows(self._plan) else logits, cache)

    monkeypatch.setattr(BatchRunner, "_logits", batch_logits)
    monkeypatch.setattr(Attempt, "_decode", decode)
    with Session(CONFIG) as session:
        answers, failed, _ = many(session, [REQUESTS[0], replace(REQUESTS[2], max_tokens=7), REQUESTS[4]])
    assert list(failed) == [1] and isinstance(failed[1].error, NotFinite)
    assert answers[0].text == ANSWER and sorted(answers) == [0, 2]


def test_the_times_of_a_group_are_those_of_its_stages() -> None:
    with Session(CONFIG) as session:
        answers, _, _ = many(session, REQUESTS[:2])
    for timing in (answer.timing for answer in answers.values()):
        stages = (timing.video_seconds, timing.vision_seconds, timing.prefill_seconds)
        assert min(stages) > 0 and sum(stages) <= timing.first_token_seconds
        assert 0 < timing.decode_seconds <= timing.total_seconds - timing.first_token_seconds


def test_a_file_that_is_gone_fails_its_own_request(tmp_path: Path) -> None:
    gone = Path(shutil.copy(CLIPS[0], tmp_path / "gone.mp4"))

    def opened(request: Request, stopped: Callable[[], bool]) -> VideoReader:
        reader = open_video(request.video, isolated=False, stopped=stopped)
        gone.unlink(missing_ok=True)  # a prefetched clip's frames need no file
        return reader

    with Session(CONFIG, opener=opened) as session:
        answers, failed, _ = many(session, [Request(str(gone), QUESTION), REQUESTS[0]])
    assert isinstance(failed[0].error, VideoNotFound) and answers[1].text == ANSWER


def test_stopping_stops_all() -> None:
    with Session(CONFIG) as session, pytest.raises(Interrupted):
        for _, event in session.ask_many(REQUESTS):
            if isinstance(event, StageStarted) and event.stage == "decode":
                session.cancel()


def test_prompts_share_chunks_and_attend_to_themselves_alone() -> None:
    """One pass holds the end of one prompt and the beginning of the next: logits as if each had its own."""
    models = pair("2B")
    storage = room(models, 3)
    _, _, expected = prefilled(models, storage)
    for chunk in (7, 40, 1000):
        shared = room(models, 3)
        prefill, caches = Prefill(models.ours, make_kernel("flash", CPU), chunk), []
        for row, grid in enumerate(GRIDS):
            embeddings, places = prompt_tensors(models, random_patches(*grid), *grid[1:])
            caches.append(KVCache(shared, row))
            for _ in prefill.push(caches[-1], embeddings, places):
                pass
        for _ in prefill.flush(caches[-1]):
            pass
        assert torch.allclose(prefill.logits(*caches), torch.stack(expected), atol=1e-4, rtol=0), chunk
