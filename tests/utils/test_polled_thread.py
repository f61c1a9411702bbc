"""Items of a thread: their order, errors from both sides, and the end of the thread."""

from collections.abc import Generator
from contextlib import closing
from threading import Event

import pytest

from vidqa.utils.polled_thread import call_in_thread, iterate_in_thread


def never() -> None:
    """Do not stop."""


def test_items_come_in_order_and_more_than_the_queue_holds() -> None:
    def numbers() -> Generator[int, None, None]:
        yield from range(100)

    assert list(iterate_in_thread(numbers, never)) == list(range(100))
    assert call_in_thread(lambda: None, never) is None


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    items = iterate_in_thread(broken, never)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_what_poll_raises_is_raised_while_the_call_blocks() -> None:
    free, ended = Event(), Event()

    def blocks() -> Generator[int, None, None]:
        try:
            free.wait(60)
            yield 1
            yield 2
        finally:
            ended.set()

    def stop() -> None:
        raise KeyError("stop")

    with closing(iterate_in_thread(blocks, stop)) as items, pytest.raises(KeyError):
        next(items)
    assert not ended.is_set()
    free.set()
    assert ended.wait(60), "the thread closes the generator at its next item"
