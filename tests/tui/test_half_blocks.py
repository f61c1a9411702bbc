"""Thumbnails: their size and colours, which frames are shown, and how."""

import numpy as np
import pytest
from rich.color import Color

from tests.tui.scripted import (
    DEMO,
    AppHarness,
    controller,
    main,
    opened,
    part,
    pilot_test,
    press,
    says,
    screen_text,
    until,
)
from vidqa.tui.half_blocks import HalfBlockImage, fit, half_blocks, shrink
from vidqa.tui.launch import image_mode
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.widgets.thumbnail import PixelThumbnail
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip, spread_frames
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.worker_messages import FramesFailed

RED, BLUE = (255, 0, 0), (0, 0, 255)


def cell(*pixels: tuple[int, int, int]) -> tuple[str, Color | None, Color | None]:
    """The cell of four pixels: upper left, upper right, lower left, lower right."""
    ((segment,),) = half_blocks(HalfBlockImage(2, 2, bytes(value for pixel in pixels for value in pixel)))
    assert segment.style is not None
    return segment.text, segment.style.color, segment.style.bgcolor


@pytest.mark.parametrize(
    ("pixels", "block"),
    [
        ((RED, RED, BLUE, BLUE), "▀"), ((RED, BLUE, RED, BLUE), "▌"), ((RED, BLUE, BLUE, RED), "▚"),
        ((RED, BLUE, BLUE, BLUE), "▘"), ((BLUE, RED, BLUE, BLUE), "▝"), ((BLUE, BLUE, RED, BLUE), "▖"),
        ((BLUE, BLUE, BLUE, RED), "▗"),
    ],
)  # fmt: skip
def test_a_cell_shows_each_division_of_its_four_pixels(pixels: tuple[tuple[int, int, int], ...], block: str) -> None:
    assert cell(*pixels) == (block, Color.from_rgb(*RED), Color.from_rgb(*BLUE))


def test_the_division_with_the_least_error_is_chosen_and_its_parts_have_mean_colours() -> None:
    dark, bright = (10, 10, 10), (250, 250, 250)
    assert cell(dark, (30, 30, 30), bright, bright) == ("▀", Color.from_rgb(20, 20, 20), Color.from_rgb(*bright))
    assert cell(bright, dark, bright, (14, 14, 14)) == ("▌", Color.from_rgb(*bright), Color.from_rgb(12, 12, 12))


def test_lines_of_cells_stand_where_their_pixels_are() -> None:
    picture = HalfBlockImage(4, 4, bytes([*RED * 2, *BLUE * 2] * 2 + [*BLUE * 2, *RED * 2] * 2))
    fronts = [[one.style.color for one in line if one.style] for line in half_blocks(picture)]
    red, blue = Color.from_rgb(*RED), Color.from_rgb(*BLUE)
    assert fronts == [[red, blue], [blue, red]]


@pytest.mark.parametrize(
    ("height", "width", "most", "size"),
    [(1080, 1920, (480, 320), (480, 270)), (1920, 1080, (480, 320), (180, 320)), (2, 2, (480, 320), (320, 320))],
)
def test_a_frame_keeps_its_shape(height: int, width: int, most: tuple[int, int], size: tuple[int, int]) -> None:
    small = shrink(np.zeros((height, width, 3), np.uint8), *most)
    assert (small.width, small.height) == size and len(small.rgb) == 3 * small.width * small.height


def test_a_frame_of_one_colour_stays_so() -> None:
    rgb = np.full((240, 320, 3), (10, 200, 30), np.uint8)
    picture = fit(shrink(rgb, 480, 320), 16, 6)
    assert (picture.width, picture.height) == (32, 12), "16 × 6 cells of 2 × 2 pixels"
    assert set(zip(picture.rgb[::3], picture.rgb[1::3], picture.rgb[2::3], strict=True)) == {(10, 200, 30)}


@pytest.mark.parametrize(
    ("wanted", "environment", "ascii_only", "shown"),
    [
        ("half", {"COLORTERM": "truecolor"}, False, "half"),
        ("half", {"TERM": "xterm-256color"}, False, "half"),
        ("half", {"TERM": "linux"}, False, "none"),
        ("half", {"COLORTERM": "truecolor", "NO_COLOR": "1"}, False, "none"),
        ("half", {"COLORTERM": "truecolor"}, True, "none"),
        ("none", {"COLORTERM": "truecolor"}, False, "none"),
        ("kitty", {}, False, "kitty"),
        ("sixel", {}, False, "sixel"),
        ("auto", {"COLORTERM": "truecolor"}, False, "half"),  # no terminal answers here
        ("auto", {"COLORTERM": "truecolor"}, True, "none"),
    ],
)
def test_how_pictures_are_shown(wanted: str, environment: dict[str, str], ascii_only: bool, shown: str) -> None:
    assert image_mode(wanted, environment, ascii_only=ascii_only) == shown


@pilot_test
async def test_a_wider_terminal_shows_more_frames_and_the_first_and_last_always() -> None:
    async with AppHarness(says("It moves.")).running() as pilot:
        plan = controller(pilot).forecast.plan  # type: ignore[union-attr]
        assert plan is not None
        assert spread_frames(plan, 100) == tuple(zip(plan.indices, plan.timestamps_seconds, strict=True))
        for count in range(2, 8):
            shown = spread_frames(plan, count)
            assert len(shown) == count and shown[0][0] == plan.indices[0] and shown[-1][0] == plan.indices[-1]


@pytest.mark.parametrize("mode", ["half", "kitty", "sixel"])
@pilot_test
async def test_the_strip_and_the_large_view_show_decoded_frames(mode: str) -> None:
    async with AppHarness(says("It moves.")).running(images=mode) as pilot:
        strip = part(pilot, ThumbnailStrip)
        controller(pilot).thumbnail_loader.open(DEMO)
        await until(pilot, lambda: len(strip.pictures) >= 3, "decoded frames")
        assert all(isinstance(cell, PixelThumbnail) is (mode != "half") for cell in strip.children)
        viewer = await opened(pilot, "f10", FrameViewer)
        await pilot.press("right", "right")
        await until(pilot, lambda: viewer._frames[2][0] in strip.pictures, "a frame that the strip does not show")
        await press(pilot, "escape", lambda: part(pilot, Timeline).cursor == viewer._frames[2][1], "the cursor moves")


@pilot_test
async def test_the_large_view_says_which_frame_cannot_be_decoded_and_tries_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with AppHarness(says("It moves.")).running(images="half") as pilot:
        requested: list[int] = []
        monkeypatch.setattr(controller(pilot).thumbnail_loader, "request_first", requested.append)
        viewer = await opened(pilot, "f10", FrameViewer)
        await until(pilot, lambda: "decoding…" in screen_text(pilot.app), "it waits")
        (first, _), (second, _), *_ = viewer._frames
        main(pilot).post_message(FramesFailed(frozenset({first})))
        await until(pilot, lambda: "this frame cannot be decoded" in screen_text(pilot.app), "it is said")
        assert requested == [first]
        await press(
            pilot, "right", lambda: "frame 2" in screen_text(pilot.app) and "decoding…" in screen_text(pilot.app)
        )
        await press(
            pilot, "left", lambda: "frame 1" in screen_text(pilot.app) and "decoding…" in screen_text(pilot.app)
        )
        assert requested == [first, second, first]
