"""The session plans and asks with the subtitles of the open video."""

import shutil
from dataclasses import replace
from pathlib import Path

from textual.pilot import Pilot

from tests.subtitle_files import CUES, srt
from tests.tui.scripted import DEMO, AppHarness, controller, main, part, pilot_test, planned, says, shown, until
from vidqa.tui.widgets.thumbnail_strip import ThumbnailStrip
from vidqa.types import Request


@pilot_test
async def test_a_file_beside_the_video_is_planned(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(DEMO, clip)
    clip.with_suffix(".srt").write_text(srt())
    async with AppHarness(says("yes")).running(video=str(clip)) as pilot:
        await planned(pilot)
        forecast = controller(pilot).forecast
        assert forecast is not None and forecast.plan is not None and forecast.plan.subtitles is not None
        assert forecast.plan.subtitles.cues == CUES
        assert controller(pilot).request("what?").subs == "auto"


@pilot_test
async def test_a_given_file_belongs_to_the_first_video(tmp_path: Path) -> None:
    other = tmp_path / "talk.srt"
    other.write_text(srt(CUES[:1]))
    request = Request(video="", question="", subs=str(other))
    async with AppHarness(says("yes")).running(video=DEMO, request=request) as pilot:
        await planned(pilot)
        state = controller(pilot)
        assert state.video is not None and state.video.subtitles is not None
        assert state.video.subtitles.cues == CUES[:1]
        assert state.request("what?").subs == str(other)
        state.set_video(replace(state.video, path=str(tmp_path / "b.mp4")))
        assert state.request("what?").subs == "auto"


def copies(folder: Path, *names: str) -> list[Path]:
    """Copies of the demo clip, each with a file of subtitles beside it."""
    clips = [folder / name for name in names]
    for clip in clips:
        shutil.copy(DEMO, clip)
        clip.with_suffix(".srt").write_text(srt())
    return clips


def is_shown(pilot: Pilot[int], clip: Path) -> bool:
    video = controller(pilot).video
    return video is not None and video.path == str(clip)


def has_subtitles(pilot: Pilot[int]) -> bool:
    video = controller(pilot).video
    return video is not None and video.subtitles is not None


async def has_all_pictures(pilot: Pilot[int]) -> None:
    """Wait until every frame of the strip is decoded."""
    strip = part(pilot, ThumbnailStrip)
    await until(pilot, lambda: strip._shown and {index for index, _ in strip._shown} <= set(strip.pictures), "pictures")


@pilot_test
async def test_subtitles_that_are_chosen_while_another_video_opens_do_not_cancel_it(tmp_path: Path) -> None:
    first, second = copies(tmp_path, "a.mp4", "b.mp4")
    async with AppHarness(says("yes")).running(video=str(first)) as pilot:
        await planned(pilot)
        assert has_subtitles(pilot)
        main(pilot).open_path(str(second))
        main(pilot).choose_subtitles("off")
        await until(pilot, lambda: is_shown(pilot, second) and not has_subtitles(pilot), "the other video, without")
        assert controller(pilot).opening is None and controller(pilot).request("what?").subs == "off"
        main(pilot).choose_subtitles("auto")
        await until(pilot, lambda: has_subtitles(pilot), "those of the other video")
        assert is_shown(pilot, second)


@pilot_test
async def test_subtitles_that_are_chosen_while_no_video_can_be_opened_are_read_for_the_current_one(
    tmp_path: Path,
) -> None:
    (clip,) = copies(tmp_path, "a.mp4")
    async with AppHarness(says("yes")).running(video=str(clip), images="half") as pilot:
        await planned(pilot)
        part(pilot, ThumbnailStrip).pictures.clear()
        main(pilot).open_path(str(tmp_path / "none.mp4"))
        main(pilot).choose_subtitles("off")
        await until(pilot, lambda: "This video cannot be opened" in shown(pilot), "the error")
        await until(pilot, lambda: not has_subtitles(pilot), "the choice")
        assert is_shown(pilot, clip)
        await has_all_pictures(pilot)


@pilot_test
async def test_frames_are_decoded_also_after_subtitles_could_not_be_read(tmp_path: Path) -> None:
    (clip,), said = copies(tmp_path, "a.mp4"), tmp_path / "said.srt"
    said.write_text(srt(CUES[:1]))
    async with AppHarness(says("yes")).running(video=str(clip), images="half") as pilot:
        await planned(pilot)
        main(pilot).choose_subtitles(str(said))
        await until(pilot, lambda: controller(pilot).video.subtitles.cues == CUES[:1], "the file")  # type: ignore[union-attr]
        await has_all_pictures(pilot)
        said.write_text("damaged")
        main(pilot).choose_subtitles(str(said))
        await until(pilot, lambda: "These subtitles are not used" in shown(pilot), "the error")
        part(pilot, ThumbnailStrip).pictures.clear()
        controller(pilot).plan()
        await has_all_pictures(pilot)
