"""The budget bar: what is used, planned and free, in its cells and on its scale."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.tui.scripted import CARD, AppHarness, part, pilot_test, says
from tests.tui.test_behaviour_plan import current_plan
from vidqa.tui.widgets.budget_bar import BudgetBar, _scale
from vidqa.types import Device, Plan

GIB = 2**30


def drawn(bar: BudgetBar, plan: Plan, device: Device) -> list[str]:
    bar.show(plan, device)
    return bar.render().plain.splitlines()


@pilot_test
async def test_cells_and_figures_are_those_of_the_plan() -> None:
    async with AppHarness(says("x")).running() as pilot:
        bar, plan = part(pilot, BudgetBar), current_plan(pilot)
        device = replace(CARD, total_bytes=24 * GIB, other_bytes=6 * GIB)
        totals, cells, scale, *legend = drawn(bar, replace(plan, budget_bytes=18 * GIB), device)
        width, count = bar.size.width, Counter(cells)
        assert len(cells) == width == len(scale.rstrip()), "the total stands at the end"
        assert count["╱"] == round(width * 6 / 24)
        planned = sum(count[glyph] for glyph in "█▓▒░·")
        assert abs(planned - plan.required_bytes / (24 * GIB) * width) <= 1
        assert count["─"] == width - count["╱"] - planned and cells.endswith("─") and cells.startswith("╱")
        assert totals.split()[:3] == ["6.0", "GiB", "used"] and totals.endswith(" free")
        assert [name for name in ("weights", "KV cache", "others") if name not in " ".join(legend)] == []


@pilot_test
async def test_the_end_of_the_budget_is_marked_where_memory_is_left_out_or_missing() -> None:
    async with AppHarness(says("x")).running() as pilot:
        bar, plan = part(pilot, BudgetBar), current_plan(pilot)
        device, width = replace(CARD, total_bytes=24 * GIB, other_bytes=0), bar.size.width
        _, cells, *_ = drawn(bar, replace(plan, budget_bytes=12 * GIB), device)
        assert cells.index("┃") == round(width / 2) and cells[cells.index("┃") + 1 :].isspace()
        totals, cells, *_ = drawn(bar, replace(plan, budget_bytes=plan.required_bytes // 2), device)
        assert "✗" in totals and totals.endswith(" over") and "used" not in totals
        assert abs(cells.index("┃") - plan.required_bytes / 2 / (24 * GIB) * width) <= 1


@pytest.mark.parametrize(
    ("size", "width", "scale"),
    [
        (23.5, 47, "0         5         10        15       23.5 GiB"),
        (0.5, 47, "0        100      200       300         512 MiB"),
        (80, 40, "0         20        40        60  80 GiB"),
        (3, 10, "0    3 GiB"),
    ],
)
def test_the_scale_has_round_numbers_in_their_places(size: float, width: int, scale: str) -> None:
    line = _scale(int(size * GIB), width).plain
    assert line == scale
