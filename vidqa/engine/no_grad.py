"""Autograd off for functions and generators.

A generator that yields inside `with torch.no_grad()` leaks that mode to its consumer between yields, and one made
inside the scope but consumed outside runs with autograd on. Here each `next()` enters and leaves the scope. Grad mode
belongs to a thread: each thread enters the scope itself.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def no_grad_scope() -> Iterator[None]:
    """Turn autograd off, and inference mode too: a KV cache made in it could not be written to outside of it."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def no_grad_generator(
    stage: Callable[Arguments, Generator[Item, Any, Result]],
) -> Callable[Arguments, Generator[Item, Any, Result]]:
    """Decorate a generator function so that it runs with autograd off, and its consumer does not."""

    @wraps(stage)
    def scoped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Generator[Item, Any, Result]:
        running = stage(*args, **kwargs)
        try:
            while True:
                with no_grad_scope():
                    try:
                        item = next(running)
                    except StopIteration as finished:
                        result: Result = finished.value
                        return result
                yield item
        finally:
            with no_grad_scope():
                running.close()

    return scoped
