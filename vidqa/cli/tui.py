"""`vidqa tui [VIDEO]`, and `vidqa` alone: the options of the interactive session. What opens it stands above."""

from typing import Any

from vidqa.cli.arguments import add_plan_options, add_setting_options
from vidqa.settings.schema import TUI_SETTINGS


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "tui",
        help="ask in an interactive session (also: vidqa without a command)",
        description="Opens an interactive session: pick a video, see the plan, ask, ask again.",
    )
    parser.add_argument("video", metavar="VIDEO", nargs="?", help="a video file")
    add_plan_options(parser)
    add_setting_options(parser.add_argument_group("how it looks"), TUI_SETTINGS)
    parser.set_defaults(frames=None, fps=None, start=None, end=None, size=None)
