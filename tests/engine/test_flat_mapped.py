"""A stage whose events are passed on as others."""

from collections.abc import Generator

import pytest

from vidqa.engine.timers import flat_mapped
from vidqa.utils.generators import finished

closed: list[str] = []


def steps() -> Generator[int, None, str]:
    try:
        yield 1
        yield 2
    finally:
        closed.append("closed")
    return "done"


def test_each_step_becomes_several_or_none_and_the_result_stays() -> None:
    seen: list[str] = []
    assert finished(flat_mapped(steps(), lambda step: [f"{step}"] * (step - 1)), seen.append) == "done"
    assert seen == ["2"]


def test_the_generator_is_closed_with_the_one_that_passes_it_on() -> None:
    closed.clear()
    passed_on = flat_mapped(steps(), lambda step: [step])
    assert next(passed_on) == 1 and not closed
    passed_on.close()
    assert closed == ["closed"]


def test_an_error_of_a_step_closes_it_too() -> None:
    closed.clear()

    def refuse(step: int) -> list[int]:
        raise ValueError(step)

    with pytest.raises(ValueError):
        finished(flat_mapped(steps(), refuse))
    assert closed == ["closed"]
