"""F1 explains the focused part with its keys; the palette has vidqa's actions first."""

from functools import partial

from textual.widget import Widget

from tests.tui.scripted import AppHarness, main, opened, pilot_test, press, says, until
from tests.tui.test_behaviour_actions import focus_for, focused
from vidqa.tui.bindings import actions_in
from vidqa.tui.command_palette import ActionProvider, palette_actions
from vidqa.tui.screens.dialogs import TextViewer
from vidqa.tui.screens.frame_viewer import FrameViewer


@pilot_test
async def test_the_help_of_a_part_has_all_its_actions() -> None:
    async with AppHarness(says("It moves.")).running(images="half") as pilot:
        for place in ("transcript", "timeline", "plan", "strip"):
            actions = list(actions_in(place))  # type: ignore[arg-type]
            widget = main(pilot).query_one(focus_for(actions[0]), Widget)
            widget.focus()
            await until(pilot, partial(focused(focus_for(actions[0])), pilot), "the focus")
            viewer = await opened(pilot, "f1", TextViewer)
            text = viewer._text.plain
            assert viewer._title == widget.help_title and text.startswith(widget.help_text)  # type: ignore[attr-defined]
            assert "Keys here" in text and [one.tooltip for one in actions if one.tooltip not in text] == []
            assert [one.id for one in actions if one.id in text] == [], "ids are for the settings' page"
            await press(pilot, "f1", lambda: pilot.app.screen is main(pilot), "the help is closed")


@pilot_test
async def test_the_help_of_the_prompt_leaves_out_the_editors_keys_and_that_of_a_dialog_has_its_own() -> None:
    async with AppHarness(says("It moves.")).running() as pilot:
        text = (await opened(pilot, "f1", TextViewer))._text.plain
        here = text[text.index("Keys here") : text.index("Keys everywhere")].splitlines()[1:]
        assert len([line for line in here if line.strip()]) == len(list(actions_in("prompt")))
        await press(pilot, "f1", lambda: pilot.app.screen is main(pilot), "the help is closed")
        await opened(pilot, "f10", FrameViewer)
        text = (await opened(pilot, "f1", TextViewer))._text.plain
        here = text[text.index("Keys here") : text.index("Keys everywhere")]
        assert "Show the next frame" in here and "Ask this question" not in text


@pilot_test
async def test_the_palette_begins_with_vidqas_actions_and_has_textuals_commands_after_them() -> None:
    async with AppHarness(says("It moves.")).running() as pilot:
        provider = ActionProvider(main(pilot))
        found = [hit.text async for hit in provider.discover()]
        own = [one.description for one in palette_actions()]
        assert found[: len(own)] == own and "Theme" in found[len(own) :]
        hits = sorted([hit async for hit in provider.search("the")], key=lambda hit: -hit.score)
        assert hits[0].help != "Change the current theme" and any(hit.text == "Theme" for hit in hits)
