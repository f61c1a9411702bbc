"""When Python looks for cyclic garbage: between answers, not while somebody types.

A full collection stops every thread, for half a second once torch is loaded and an answer is long. Young
garbage is still collected at once. Knows the collector, nothing else.
"""

import gc

_YOUNG, _MIDDLE, _NEVER = 5_000, 10, 2**30  # CPython's are 700, 10, 10


def put_off() -> None:
    """No full collections by themselves from now on; what is there already is not looked at again."""
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    gc.freeze()


def set_aside() -> None:
    """A model was loaded: it and its libraries stay, so nothing of them is looked at."""
    gc.freeze()


def catch_up() -> None:
    """An answer is complete: collect what it left, and look at its widgets only once."""
    gc.collect()
    gc.freeze()


def look_at_all() -> None:
    """A conversation went from the screen: the next `catch_up` finds what it left."""
    gc.unfreeze()
