"""Gradients off around *consumption*: one small rule in one place.

A generator that yields inside `with torch.no_grad()` leaks that mode to its consumer
between yields, and one made inside the scope but consumed outside runs with autograd on.
Here each `next()` enters and leaves the scope by itself.
"""

from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")


def without_grad(
    stage: Callable[Arguments, Generator[Item, Any, Result]],
) -> Callable[Arguments, Generator[Item, Any, Result]]:
    """Make a generator function run with autograd off, and only while it runs."""

    @wraps(stage)
    def scoped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Generator[Item, Any, Result]:
        running = stage(*args, **kwargs)
        try:
            while True:
                with torch.no_grad():
                    try:
                        item = next(running)
                    except StopIteration as finished:
                        result: Result = finished.value
                        return result
                yield item
        finally:
            with torch.no_grad():
                running.close()

    return scoped
