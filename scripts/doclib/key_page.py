"""The page of the session's keys, made from its list of actions."""

from collections.abc import Iterator

from doclib.markdown import page, table
from vidqa.tui.bindings import ACTIONS, LOCAL_ACTIONS

_SIGNS = {"left_square_bracket": "[", "right_square_bracket": "]", "escape": "Esc"}
_PLACES = {
    "global": "everywhere", "app": "in the session", "transcript": "in the conversation",
    "timeline": "on the time line",
    "plan": "on the plan", "strip": "on the frames", "prompt": "in the prompt", "models": "in the chooser of models",
    "open": "while opening a video", "history": "in the history", "frames": "in the view of frames",
    "text": "in a text", "pick": "in a choice", "moments": "in the moments", "line": "in a line of text",
}  # fmt: skip


def render_keys() -> str:
    """Return docs/reference/keys.md; raises KeyError for a place without a name here."""
    lines = [
        "The keys of [the session](../session.md). The table `[keys]` of the [configuration file](settings.md) gives an"
        ' action other keys, by its id: `"ask.stop" = "escape,ctrl+x"`.',
        "",
        *table(("id", "keys", "where", "what it does"), _rows()),
    ]
    return page("Keys", lines)


def shown_keys(keys: str) -> list[str]:
    """Return keys as they are written for people: `[` instead of `left_square_bracket`."""
    return [_SIGNS.get(key, key) for key in keys.split(",")]


def _rows() -> Iterator[tuple[str, ...]]:
    for action in (*ACTIONS, *LOCAL_ACTIONS):
        keys = ", ".join(f"`{key}`" for key in shown_keys(action.keys))
        yield f"`{action.id}`", keys, _PLACES[action.place], action.tooltip
