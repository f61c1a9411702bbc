"""How clips are assigned to workers: bounded, even at the end, suspects alone."""

from collections.abc import Iterator

import pytest

from tests.batch.scripted_captioner import clips, numbered
from vidqa.batch.clip_record import PendingClip
from vidqa.batch.work_queue import WorkerSlot, WorkQueue


def queue_of(count: int, workers: int = 1, max_held: int = 24) -> WorkQueue:
    return WorkQueue(clips(*numbered(count)), workers, max_held)


def assign(queue: WorkQueue, slot: WorkerSlot, share: int) -> list[str]:
    return [clip.pending.clip.name for clip in queue.assign(slot, share)]


def test_no_more_clips_are_pulled_than_the_workers_may_hold() -> None:
    pulled: list[str] = []

    def pending() -> Iterator[PendingClip]:
        for clip in clips(*numbered(1000)):
            pulled.append(clip.clip.name)
            yield clip

    queue = WorkQueue(pending(), workers=2, max_held=5)
    assert len(queue) == 10
    assert len(assign(queue, WorkerSlot(), queue.share(2, 0))) == 5
    assert len(pulled) == 10
    assert len(queue) == 10
    assert len(pulled) == 15


@pytest.mark.parametrize(
    ("count", "held", "share"),
    [
        (1000, 40, 17),  # ceil(136 known / 4 / 2)
        (1000, 96, 24),
        (24, 24, 8),  # a batch and the next one
        (10, 0, 3),
        (1, 0, 1),
    ],
)
def test_shares_shrink_towards_the_end_and_are_even(count: int, held: int, share: int) -> None:
    assert queue_of(count, workers=4).share(4, held) == share


def test_a_dead_workers_clips_are_assigned_one_at_a_time() -> None:
    queue, dead, other = queue_of(6, workers=2), WorkerSlot(), WorkerSlot()
    queue.assign(dead, 3)
    queue.assign(other, 2)
    assert queue.requeue(dead) == []
    assert not dead.held
    assert assign(queue, dead, 3) == ["0.mp4"]
    assert assign(queue, dead, 3) == []
    assert assign(queue, other, 3) == ["5.mp4"]  # no suspect beside others


def test_a_clip_is_given_up_after_three_deaths() -> None:
    queue, slot = queue_of(1), WorkerSlot()
    for given_up in ([], [], ["0.mp4"]):
        assert assign(queue, slot, 1) == ["0.mp4"]
        assert [clip.clip.name for clip in queue.requeue(slot)] == given_up
    assert len(queue) == 0


def test_a_worker_that_died_twice_gets_a_new_clip_before_a_suspect() -> None:
    queue, slot = queue_of(3, max_held=2), WorkerSlot()
    queue.assign(slot, 2)
    queue.requeue(slot)
    slot.deaths = 2
    assert len(queue) == 3
    assert assign(queue, slot, 2) == ["2.mp4"]
    slot.held.clear()
    assert assign(queue, slot, 2) == ["0.mp4"]  # no new clip is left


def test_a_worker_is_exhausted_after_three_deaths_without_a_suspect() -> None:
    queue, slot = queue_of(1), WorkerSlot(deaths=3)
    assert slot.is_exhausted
    queue.assign(slot, 1)
    assert slot.is_exhausted
    queue.requeue(slot)
    queue.assign(slot, 1)
    assert not slot.is_exhausted
