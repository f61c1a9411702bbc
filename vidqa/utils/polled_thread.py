"""Blocking calls of a library, in a thread, so that the caller can stop while they wait for a network.

A file of its own: it is about threads, not downloads, and is tested without a network.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1
_QUEUED = 4  # items that the thread may be ahead


def call_in_thread(call: Callable[[], Item], poll: Callable[[], None]) -> Item:
    """Return what `call` returns, or raise what it raises; see `iterate_in_thread`."""

    def once() -> Generator[Item, None, None]:
        yield call()

    with contextlib.closing(iterate_in_thread(once, poll)) as results:
        return next(results)


def iterate_in_thread(
    produce: Callable[[], Generator[Item, None, None]], poll: Callable[[], None]
) -> Generator[Item, None, None]:
    """Yield the items of `produce`, which runs in a daemon thread, and call `poll` ten times a second while waiting.

    What `produce` raises is raised here. What `poll` raises ends the iteration at once; the thread then ends at its
    next item, which is dropped, and closes the generator.
    """
    # An item is in a tuple; an error or None is the end.
    items: queue.Queue[tuple[Item] | Exception | None] = queue.Queue(_QUEUED)
    stopped = threading.Event()

    def put(item: tuple[Item] | Exception | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=_POLL_SECONDS)
                return

    def run() -> None:
        error: Exception | None = None
        try:
            with contextlib.closing(produce()) as source:
                for item in source:
                    put((item,))
                    if stopped.is_set():
                        return
        except Exception as caught:
            error = caught
        put(error)

    threading.Thread(target=run, name="polled", daemon=True).start()
    try:
        while True:
            try:
                item = items.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                poll()
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item[0]
    finally:
        stopped.set()
