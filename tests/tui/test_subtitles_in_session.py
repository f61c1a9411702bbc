"""The session plans and asks with the subtitles of the open video."""

import shutil
from dataclasses import replace
from pathlib import Path

from tests.subtitle_files import CUES, srt
from tests.tui.scripted import DEMO, AppHarness, controller, pilot_test, planned, says
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
