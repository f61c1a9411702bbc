"""Texts about plans in the session: they name what the plan panel shows, not options of the command line."""

import pytest

from vidqa.settings.schema import ENGINE_SETTINGS
from vidqa.tui.option_words import in_session_words
from vidqa.tui.plan_overrides import PLAN_OPTIONS


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("5.2 GiB are allowed by --vram on a card.", "5.2 GiB are allowed by the budget on a card."),
        ("more add little (--quality balanced)", "more add little (quality balanced)"),
        ("(--max-wait auto: 90 s on a CPU)", "(wait auto: 90 s on a CPU)"),
        ("left out (--subs-share)", "left out (--subs-share)"),
    ],
)
def test_options_become_the_panels_words(text: str, shown: str) -> None:
    assert in_session_words(text) == shown


def test_every_option_of_the_panel_has_a_word() -> None:
    flags = {setting.dest: setting.flag for setting in ENGINE_SETTINGS}
    for field in PLAN_OPTIONS:
        name = field.removesuffix("_bytes").removesuffix("_seconds")
        flag = flags.get(name, f"--{name}")
        assert "--" not in in_session_words(f"{flag} x")
