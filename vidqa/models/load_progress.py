"""How many bytes of a checkpoint are in their model, while transformers loads it.

Listens to transformers' own progress bar through its public hook, and looks sizes up in the
headers of the files. Loads nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidqa.models.weight_files import tensor_sizes

_BAR = "Loading weights"  # transformers/core_model_loading.py, convert_and_load_state_dict_in_model


@contextmanager
def counting(folder: Path, told: Callable[[int], None]) -> Iterator[None]:
    """Call `told` with the bytes so far after each tensor of `folder` that is in its model; it may raise to stop.

    The hook is one for the process: nothing else may load meanwhile.
    """
    from transformers.utils import logging as talk

    sizes = tensor_sizes(folder)

    def watch(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") != _BAR or not args:
            return factory(*args, **options)
        return _told(list(args[0]), sizes, told)

    before = talk.set_tqdm_hook(watch)
    try:
        yield
    finally:
        talk.set_tqdm_hook(before)


def _told(items: list[tuple[str, Any]], sizes: dict[str, int], told: Callable[[int], None]) -> Iterator[Any]:
    """Pass the items on: when the next one is asked for, the one before is in the model."""
    done, total = 0, sum(sizes.values())
    named = [_size(mapping.source_patterns, sizes) for _, mapping in items]
    even = total / max(len(items), 1)  # where several stored tensors make one, each counts alike
    exact = all(size is not None for size in named)
    for place, (item, size) in enumerate(zip(items, named, strict=True), start=1):
        yield item
        done = done + size if exact and size is not None else round(place * even)
        told(done)


def _size(names: Iterable[str], sizes: dict[str, int]) -> int | None:
    known = [sizes[name] for name in names if name in sizes]
    return sum(known) if known else None
