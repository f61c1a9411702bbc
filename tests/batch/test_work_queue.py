"""How clips are dealt: bounded, even at the end, suspects alone."""

from collections.abc import Iterator

from tests.batch.scripted_captioner import clips
from vidqa.batch.clip_record import Pending
from vidqa.batch.work_queue import WorkerSlot, WorkQueue


def names(count: int) -> list[str]:
    return [f"{number}.mp4" for number in range(count)]


def test_no_more_clips_are_looked_at_than_the_workers_may_hold() -> None:
    looked_at: list[str] = []

    def pending() -> Iterator[Pending]:
        for clip in clips(*names(1000)):
            looked_at.append(clip.clip.name)
            yield clip

    stock = WorkQueue(pending(), workers=2, ahead=5)
    assert len(stock) == 10
    assert len(stock.hand_out(WorkerSlot(), stock.share(2, 0))) == 5
    assert len(looked_at) == 10
    assert len(stock) == 10
    assert len(looked_at) == 15


def test_shares_shrink_towards_the_end_and_a_few_clips_are_parted_evenly() -> None:
    assert WorkQueue(clips(*names(1000)), workers=4, ahead=24).share(4, 40) == 17  # ceil(136 known / 4 / 2)
    assert WorkQueue(clips(*names(1000)), workers=4, ahead=24).share(4, 96) == 24
    assert WorkQueue(clips(*names(24)), workers=4, ahead=24).share(4, 24) == 8  # a whole batch and the next
    assert WorkQueue(clips(*names(10)), workers=4, ahead=24).share(4, 0) == 3
    assert WorkQueue(clips(*names(1)), workers=4, ahead=24).share(4, 0) == 1


def test_after_a_death_its_clips_are_handed_out_one_at_a_time() -> None:
    stock, dead, other = WorkQueue(clips(*names(6)), workers=2, ahead=24), WorkerSlot(), WorkerSlot()
    stock.hand_out(dead, 3)
    stock.hand_out(other, 2)
    assert stock.take_back(dead) == []
    assert not dead.held
    assert [one.pending.clip.name for one in stock.hand_out(dead, 3)] == ["0.mp4"]
    assert stock.hand_out(dead, 3) == []
    assert [one.pending.clip.name for one in stock.hand_out(other, 3)] == ["5.mp4"]  # no suspect beside others


def test_a_clip_of_three_deaths_is_given_up_and_only_then() -> None:
    stock, hands = WorkQueue(clips("bad.mp4"), workers=1, ahead=24), WorkerSlot()
    for _ in range(2):
        assert len(stock.hand_out(hands, 1)) == 1
        assert stock.take_back(hands) == []
    assert len(stock.hand_out(hands, 1)) == 1
    assert [clip.clip.name for clip in stock.take_back(hands)] == ["bad.mp4"]
    assert len(stock) == 0


def test_a_worker_that_died_twice_proves_itself_on_a_new_clip_before_it_gets_a_suspect() -> None:
    stock, hands = WorkQueue(clips(*names(3)), workers=1, ahead=2), WorkerSlot()
    stock.hand_out(hands, 2)
    stock.take_back(hands)
    hands.strikes = 2
    assert len(stock) == 3
    assert [one.pending.clip.name for one in stock.hand_out(hands, 2)] == ["2.mp4"]
    hands.held.clear()
    assert [one.pending.clip.name for one in stock.hand_out(hands, 2)] == ["0.mp4"]  # nothing new is left


def test_a_worker_is_out_after_three_deaths_unless_a_suspect_was_to_blame() -> None:
    stock, hands = WorkQueue(clips("a.mp4"), workers=1, ahead=2), WorkerSlot(strikes=3)
    assert hands.is_out
    stock.hand_out(hands, 1)
    assert hands.is_out
    stock.take_back(hands)
    stock.hand_out(hands, 1)
    assert not hands.is_out
