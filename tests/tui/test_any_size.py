"""No size of a terminal breaks the screen, and the layout at a size depends on that size alone."""

from tests.tui.scripted import AppHarness, asked, main, pilot_test, says, screen_text, until

SIZES = ((60, 20), (39, 9), (120, 36), (40, 10), (10, 3), (3, 2), (1, 1), (200, 60), (39, 60), (200, 9), (80, 24))


@pilot_test
async def test_every_size_after_every_other() -> None:
    async with AppHarness(says("It moves.")).running(images="half") as pilot:
        await asked(pilot)
        for size in (*SIZES, *reversed(SIZES)):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda size=size: pilot.app.size == size, f"{size}")
            too_small, wide = size[0] < 40 or size[1] < 10, size[0] >= 96
            line = main(pilot).query_one("#too-small")
            await until(pilot, lambda too_small=too_small, line=line: line.display is too_small, f"the line at {size}")
            if not too_small:
                await until(pilot, lambda wide=wide: ("─ Plan ─" in screen_text(pilot.app)) is wide, f"{size}")
        assert "It moves." in screen_text(pilot.app)
