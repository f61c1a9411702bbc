"""What each size of a terminal shows: thumbnails, the conversation from its top, folded figures, whole keys."""

import numpy as np
import pytest
from textual.pilot import Pilot

from tests.tui.scripted import (
    AppHarness,
    asked,
    controller,
    main,
    part,
    pilot_test,
    press,
    says,
    screen_text,
    shown,
    until,
)
from vidqa.tui.half_blocks import fit, shrink
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.widgets.turn_view import TurnView

SIZES = ((120, 36), (80, 24), (60, 20))


def footer(pilot: Pilot[int]) -> str:
    return screen_text(pilot.app).splitlines()[-1]


@pytest.mark.parametrize("size", [*SIZES, (40, 10)])
@pilot_test
async def test_the_footer_shows_whole_keys_and_always_quit_help_and_palette(size: tuple[int, int]) -> None:
    async with AppHarness(says("It moves.")).running(size) as pilot:
        await until(pilot, lambda: "palette" in footer(pilot), "the footer")
        for select in ("#prompt", "#timeline", "#option-frames"):
            if select == "#option-frames" and main(pilot).has_class("-narrow"):
                await press(pilot, "f3", lambda: main(pilot).query(PlanOption).first().has_focus, "the panel")
            main(pilot).query_one(select).focus()
            await until(pilot, lambda select=select: main(pilot).query_one(select).has_focus, "the focus")
            await pilot.pause()
            words = footer(pilot).replace("│", " ").replace("▏", " ").split()
            assert words[words.index("^q") : words.index("^q") + 4] == ["^q", "Quit", "f1", "Help"]
            assert words[-2:] == ["^p", "palette"], footer(pilot)


@pytest.mark.parametrize(("size", "rows"), [((120, 36), 9), ((80, 24), 6), ((60, 20), 5)])
@pilot_test
async def test_every_size_shows_at_least_two_thumbnails(size: tuple[int, int], rows: int) -> None:
    async with AppHarness(says("It moves.")).running(size, images="half") as pilot:
        strip = part(pilot, ThumbnailStrip)
        await until(pilot, lambda: len(strip.children) >= 2, "thumbnails")
        assert strip.region.height == rows + 1 and all(one.region.height == rows + 1 for one in strip.children)
        assert all(strip.region.contains_region(one.region) for one in strip.children), "none is cut"


def test_a_wide_and_a_high_video_get_thumbnails_of_their_shape() -> None:
    for height, width in ((272, 640), (640, 272)):
        picture = fit(shrink(np.zeros((height, width, 3), np.uint8), 480, 320), 40, 10)
        assert abs((picture.width / 2) / picture.height / (width / height) - 1) < 0.1, "a cell is twice as high as wide"


@pytest.mark.parametrize("size", SIZES)
@pilot_test
async def test_a_short_conversation_begins_at_the_top_and_a_long_one_shows_its_end(size: tuple[int, int]) -> None:
    async with AppHarness(says("It moves.")).running(size) as pilot:
        transcript = part(pilot, Transcript)
        await asked(pilot, "first?")
        turn = transcript.turns()[0]
        await until(pilot, lambda: turn.region.y == transcript.content_region.y, "at the top")
        for number in range(8):
            await asked(pilot, f"again {number}?")
        await until(pilot, lambda: "again 7?" in shown(pilot) and "first?" not in shown(pilot), "at the end")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not transcript.turns() and transcript.scroll_y == 0, "a new one")
        assert "Ask about this video" in shown(pilot)


@pilot_test
async def test_the_figures_are_one_line_that_opens_with_a_key_and_a_click() -> None:
    async with AppHarness(says("It moves.")).running((80, 24)) as pilot:
        part(pilot, Transcript).focus()
        await press(pilot, "m", lambda: "There are no figures yet" in shown(pilot))
        await asked(pilot)
        turn = part(pilot, Transcript).query_one(TurnView)
        line = turn._status
        await until(pilot, lambda: "▸ answer in" in shown(pilot), "the folded line")
        assert line.region.height == 1 and "visual tokens" not in shown(pilot)
        part(pilot, Transcript).focus()
        await press(pilot, "m", lambda: "▾ " in shown(pilot) and "visual tokens" in shown(pilot))
        assert line.region.height > 1
        await pilot.click(line)
        await until(pilot, lambda: line.region.height == 1 and "▸ answer in" in shown(pilot), "folded again")
        assert controller(pilot).conversation.last is not None
