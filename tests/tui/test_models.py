"""A model that is not on this machine: what is shown, the download, and the question that waits for it."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, Static
from textual.widgets._toast import Toast

from tests.tui.scripted import (
    AppHarness,
    controller,
    demo_video,
    is_open,
    main,
    part,
    pilot_test,
    planned,
    press,
    prompt,
    says,
    shown,
    until,
)
from vidqa.errors import ModelMissing, VidqaError
from vidqa.models import registry
from vidqa.models.download import DownloadProgress, Report
from vidqa.models.hub import CachedModel, resolve_model
from vidqa.models.registry import AUTO, first_model
from vidqa.tui.launch_options import ModelSource
from vidqa.tui.screens import model_actions
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.tui.widgets.title_bar import TitleBar
from vidqa.tui.worker_messages import DownloadProgressed, VideoOpened

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
TOTAL = 4_400_000_000


@dataclass
class Downloads:
    """A source of models that reports quarters of a download, each once `step` is set."""

    error: ModelMissing | None = None
    here: set[str] = field(default_factory=set)
    step: Event = field(default_factory=Event)
    pulled: list[str] = field(default_factory=list)

    def pull(self, name: str, report: Report) -> None:
        self.pulled.append(name)
        if self.error is not None:
            raise self.error
        for quarter in range(5):
            report(DownloadProgress(quarter * TOTAL // 4, TOTAL, 0, quarter * 10.0))
            while quarter == 1 and not self.step.wait(0.01):
                report(DownloadProgress(TOTAL // 4, TOTAL, 0, 10.0))
        self.here.add(name)

    @property
    def source(self) -> ModelSource:
        return ModelSource(has_model=lambda name: name == "demo" or name in self.here, pull=self.pull)


def status(pilot: object) -> str:
    """What is above the prompt."""
    return str(main(pilot).query_one("#status", Static).content)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
def test_a_missing_model_is_not_shown_as_if_it_was_loaded(size: tuple[int, int]) -> None:
    @pilot_test
    async def play() -> None:
        async with AppHarness(says("x")).running(size=size, models=Downloads().source, video=None) as pilot:
            main(pilot).post_message(VideoOpened(demo_video()))
            await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
            await until(pilot, lambda: "F2 fetches it" in shown(pilot), "the hint")
            title = part(pilot, TitleBar).render().plain
            assert "not on this machine: Qwen/Qwen2-VL" in title and "cuda" not in title
            assert not pilot.app.screen.query(Toast) and "vidqa pull" not in shown(pilot)

    play()


@pilot_test
async def test_a_question_waits_for_the_download_of_its_model() -> None:
    downloads, harness = Downloads(), AppHarness(says("A red square."))
    async with harness.running(models=downloads.source, video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
        prompt(pilot).text = "what is there?"
        await press(pilot, "enter", lambda: is_open(pilot, ModelChooser), "the offer")
        await until(pilot, lambda: f"● {MODEL}" in shown(pilot), "the model is selected")
        await press(pilot, "enter", lambda: "1.1 GB of 4.4 GB (25 %) · 110.0 MB/s · 30 s left" in status(pilot))
        assert "Esc stops" in status(pilot) and prompt(pilot).text == "what is there?" and harness.asked == []
        downloads.step.set()
        await until(pilot, lambda: "A red square." in shown(pilot), "the answer")
        assert harness.asked == ["what is there?"] and prompt(pilot).text == ""
        assert "not on this machine" not in shown(pilot) and status(pilot) == ""


@pilot_test
async def test_escape_stops_a_download_that_can_go_on_later() -> None:
    downloads, harness = Downloads(), AppHarness(says("x"))
    async with harness.running(models=downloads.source, video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
        await press(pilot, "f2", lambda: is_open(pilot, ModelChooser) and "●" in shown(pilot), "the chooser")
        await press(pilot, "enter", lambda: "(25 %)" in status(pilot))
        prompt(pilot).focus()
        await press(pilot, "escape", lambda: status(pilot).startswith("stopped: "), "the end of the download")
        assert "F2 goes on from there" in status(pilot) and downloads.here == set()
        await press(pilot, "f2", lambda: is_open(pilot, ModelChooser), "the chooser again")
        downloads.step.set()
        await press(pilot, "enter", lambda: downloads.here == {MODEL}, "the whole model")
        assert downloads.pulled == [MODEL, MODEL]


@pilot_test
async def test_a_download_that_fails_says_so_above_the_prompt_with_the_key() -> None:
    offline = ModelMissing("Offline: https://hub cannot be reached.", "Connect, then type `vidqa pull 2b`.")
    async with AppHarness(says("x")).running(size=(80, 24), models=Downloads(offline).source, video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
        await press(pilot, "f2", lambda: is_open(pilot, ModelChooser) and "●" in shown(pilot), "the chooser")
        await press(pilot, "enter", lambda: "Offline" in status(pilot), "the error")
        assert status(pilot) == "Offline: https://hub cannot be reached. F2 tries again."
        assert not pilot.app.screen.query(Toast)


@pilot_test
async def test_a_search_without_a_model_offers_one_too() -> None:
    async with AppHarness(says("x")).running(models=Downloads().source, video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
        await press(pilot, "f12", lambda: "Which model should answer?" in shown(pilot), "the offer")


@pilot_test
async def test_the_chooser_selects_the_best_that_fits_where_there_is_no_model() -> None:
    async with AppHarness(says("x")).running(models=Downloads().source, model=None, video=None) as pilot:
        await until(pilot, lambda: is_open(pilot, ModelChooser) and "best here" in shown(pilot), "the chooser")
        chooser = pilot.app.screen
        assert isinstance(chooser, ModelChooser)
        best = chooser._rows[chooser.query_one(OptionList).highlighted or 0]
        assert best.fits and best.score == max(row.score for row in chooser._rows)


async def downloading(pilot: Pilot[int]) -> None:
    """A video is open and its model is being fetched."""
    main(pilot).post_message(VideoOpened(demo_video()))
    await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
    await press(pilot, "f2", lambda: is_open(pilot, ModelChooser) and "●" in shown(pilot), "the chooser")
    await press(pilot, "enter", lambda: "(25 %)" in status(pilot))


@pilot_test
async def test_an_error_stays_above_the_prompt_during_a_download() -> None:
    downloads = Downloads()
    async with AppHarness(says("x")).running(models=downloads.source, video=None) as pilot:
        await downloading(pilot)
        main(pilot).show_error(VidqaError("This cannot be.", "Do that."))
        progress = DownloadProgress(TOTAL // 2, TOTAL, 0, 20.0)
        main(pilot).on_download_progressed(DownloadProgressed(MODEL, progress))
        assert status(pilot) == "This cannot be. Do that."
        main(pilot).clear_error()
        main(pilot).on_download_progressed(DownloadProgressed(MODEL, progress))
        assert "(50 %)" in status(pilot)
        downloads.step.set()


@pilot_test
async def test_the_end_of_a_download_leaves_a_model_that_was_chosen_meanwhile() -> None:
    downloads = Downloads()
    async with AppHarness(says("x")).running(models=downloads.source, video=None) as pilot:
        await downloading(pilot)
        await main(pilot).use_model("demo")
        await planned(pilot)
        downloads.step.set()
        await until(pilot, lambda: "F2 chooses it" in status(pilot), "the end of the download")
        assert controller(pilot).model == "demo" and downloads.here == {MODEL}
        assert "demo model" in part(pilot, TitleBar).render().plain


@pilot_test
async def test_a_question_still_waits_after_a_search_and_a_closed_chooser() -> None:
    downloads, harness = Downloads(), AppHarness(says("A red square."))
    async with harness.running(models=downloads.source, video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: controller(pilot).forecast is not None, "a plan")
        prompt(pilot).text = "what is there?"
        await press(pilot, "enter", lambda: is_open(pilot, ModelChooser) and f"● {MODEL}" in shown(pilot), "the offer")
        await press(pilot, "enter", lambda: "(25 %)" in status(pilot))
        await pilot.press("f12")
        await press(pilot, "f2", lambda: is_open(pilot, ModelChooser), "the chooser")
        await press(pilot, "escape", lambda: not is_open(pilot, ModelChooser), "the prompt")
        downloads.step.set()
        await until(pilot, lambda: "A red square." in shown(pilot), "the answer")
        assert harness.asked == ["what is there?"]


@pilot_test
async def test_the_chooser_lists_a_missing_model_that_is_not_a_released_one() -> None:
    downloads, named = Downloads(), "me/finetune"
    async with AppHarness(says("x")).running(models=downloads.source, model=named, video=None) as pilot:
        await press(pilot, "f2", lambda: is_open(pilot, ModelChooser) and f"● {named}" in shown(pilot), "the chooser")
        assert "to download · size not known" in shown(pilot)
        await press(pilot, "enter", lambda: downloads.pulled == [named], "the download")
        downloads.step.set()
        await until(pilot, lambda: not controller(pilot).model_missing, "the model")


@pilot_test
async def test_a_folder_that_is_missing_cannot_be_fetched() -> None:
    async with AppHarness(says("x")).running(models=Downloads().source, model="/no/such/model", video=None) as pilot:
        await until(pilot, lambda: "F2 chooses another model." in shown(pilot), "the hint")
        assert "fetches" not in shown(pilot)


@pilot_test
async def test_the_chooser_opens_where_the_files_of_a_cached_model_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qw')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(registry, "resolve_model", lambda name: tmp_path if name == MODEL else resolve_model(name))
    async with AppHarness(says("x")).running(model=None, video=None) as pilot:
        await until(pilot, lambda: is_open(pilot, ModelChooser) and "best here" in shown(pilot), "the chooser")
        chooser = pilot.app.screen
        assert isinstance(chooser, ModelChooser)
        (row,) = (row for row in chooser._rows if row.name == MODEL)
        assert not row.cached and row.fits is None and "config.json" in row.verdict


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (VidqaError("The cache is damaged.", "Look."), "The cache is damaged."),
        (OSError(5, "Bad disk"), "Bad disk. See"),
    ],
)
def test_models_that_cannot_be_listed_are_an_error(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(model_actions, "list_models", fail)

    @pilot_test
    async def play() -> None:
        async with AppHarness(says("x")).running(video=None) as pilot:
            await press(pilot, "f2", lambda: "The models cannot be listed" in shown(pilot), "the error")
            assert text in shown(pilot)

    play()


def test_a_session_begins_without_a_model_where_auto_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cached: list[CachedModel] = []
    monkeypatch.setattr(registry, "cached_models", lambda: cached)
    assert first_model(AUTO) is None and first_model("2b") == MODEL
    cached.append(CachedModel(MODEL, "qwen2_vl", 1, Path(), runnable=True))
    assert first_model(AUTO) == AUTO and first_model(None) == MODEL
