"""`file://` addresses, other addresses and folders of pictures: dropped, typed into the dialog, and at the start."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from textual import events
from textual.widgets import DirectoryTree, Input, Static

from tests.clips import numbered_picture
from tests.tui.scripted import (
    DEMO,
    AppHarness,
    controller,
    opened,
    pilot_test,
    planned,
    press,
    prompt,
    says,
    shown,
    until,
)
from vidqa.errors import UsageError
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.widgets.question_input import dropped_path
from vidqa.types import NO_TIMES, PictureTimes, Request


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder `my frames` of 12 numbered pictures, in a folder without any."""
    folder = tmp_path / "my frames"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(numbered_picture(number, 128, 64)).save(folder / f"{number}.png")
    return folder


def test_folders_and_addresses_are_read_when_they_are_dropped(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(pictures)
    address = "file://{}" + folder.replace(" ", "%20")
    for text in (folder, f"'{folder}'", folder.replace(" ", "\\ "), address.format(""), address.format("localhost")):
        assert dropped_path(text) == folder
    assert dropped_path(f"file://localhost{DEMO}") == DEMO
    with pytest.raises(UsageError, match="is a file on the host nas"):
        dropped_path(address.format("nas"))
    monkeypatch.chdir(pictures.parent)
    for text in ("my frames", str(pictures.parent), "https://a.org/clip.mp4"):
        assert dropped_path(text) is None, "a question, a folder of other things, an address"
    assert dropped_path("./my frames") == "./my frames"


@pilot_test
async def test_a_dropped_folder_opens_and_a_file_of_another_host_is_an_error(pictures: Path) -> None:
    async with AppHarness(says("x")).running(video=None) as pilot:
        pilot.app.post_message(events.Paste("file://nas/clip.mp4"))
        await until(pilot, lambda: "is a file on the host nas" in shown(pilot), "the error")
        assert prompt(pilot).text == ""
        pilot.app.post_message(events.Paste(f"'{pictures}'"))
        await planned(pilot)
        video = controller(pilot).video
        assert video is not None and (video.path, video.frame_count, video.fps) == (str(pictures), 12, 25.0)
        assert "my frames · 128×64" in shown(pilot)


@pilot_test
async def test_the_dialog_takes_folders_and_addresses_and_says_what_it_does_not_take(pictures: Path) -> None:
    async with AppHarness(says("x")).running(video=None) as pilot:
        dialog = await opened(pilot, "ctrl+o", OpenVideoScreen)
        path = dialog.query_one("#path", Input)
        await press(pilot, "enter", lambda: "✗ type a path or choose a video below" in shown(pilot))
        path.value = "https://a.org/watch?v=1"
        await press(pilot, "enter", lambda: "✗ https://a.org/watch?v=1 is an address" in shown(pilot))
        assert "-o clip.mp4 'https://a.org/watch?v=1'` and give clip.mp4." in shown(pilot)
        path.value = "file://nas/clip.mp4"
        await press(pilot, "enter", lambda: "✗ file://nas/clip.mp4 is a file on the host nas" in shown(pilot))
        path.value = str(pictures.parent)
        tree = dialog.query_one("#tree", DirectoryTree)
        await press(pilot, "enter", lambda: tree.path == pictures.parent, "the tree shows a folder of other things")
        assert str(dialog.query_one("#tree-label", Static).render()) == f"In {pictures.parent}"
        path.focus()
        path.value = f"file://localhost{pictures}".replace(" ", "%20")
        await pilot.press("enter")
        await planned(pilot)
        assert controller(pilot).video.path == str(pictures)  # type: ignore[union-attr]


@pytest.mark.parametrize("typed", ["~nosuchuser/x.mp4", "/" + "x" * 300])
def test_the_dialog_takes_no_path_that_the_system_refuses(typed: str) -> None:
    @pilot_test
    async def play() -> None:
        async with AppHarness(says("x")).running(video=None) as pilot:
            dialog = await opened(pilot, "ctrl+o", OpenVideoScreen)
            dialog.query_one("#path", Input).value = typed
            await press(pilot, "enter", lambda: f"✗ there is no file {typed[:10]}" in shown(pilot))

    play()


@pilot_test
async def test_a_folder_of_pictures_is_chosen_in_the_tree(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures.parent)
    async with AppHarness(says("x")).running(video=None) as pilot:
        dialog = await opened(pilot, "ctrl+o", OpenVideoScreen)
        tree = dialog.query_one("#tree", DirectoryTree)
        await until(pilot, lambda: "my frames" in shown(pilot), "the tree")
        tree.focus()
        await pilot.press("down", "enter")
        await planned(pilot)
        assert Path(controller(pilot).video.path) == pictures  # type: ignore[union-attr]


@pilot_test
async def test_the_rate_of_the_options_is_that_of_the_first_folder_alone(pictures: Path) -> None:
    request, folder = Request(video="", question="", picture_fps=4.0), str(pictures)
    app = AppHarness(says("x")).app(video=folder, request=request)
    async with app.run_test(size=(120, 30)) as pilot:
        await planned(pilot)
        video = controller(pilot).video
        assert video is not None and (video.fps, video.duration_seconds) == (4.0, 3.0)
        assert controller(pilot).request("x").picture_times == PictureTimes(fps=4.0)
        controller(pilot).set_video(replace(video, path=DEMO))
        assert controller(pilot).request("x").picture_times == NO_TIMES
