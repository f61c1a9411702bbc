"""The help of the focused part: what it is for, its keys, and the keys that work everywhere."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

_MOST_KEY_COLUMNS = 20


def help_for(screen: Screen[object]) -> tuple[str, Content]:
    """Return title and text for the focused widget; for the screen if no focused widget has a `help_text`.

    Only vidqa's bindings are listed, which have ids: an editor's and a list's own keys are the usual ones.
    """
    widget = _widget_with_help(screen)
    nodes = [screen.focused, *([screen] if screen.is_modal else [])]
    here = [binding for node in nodes if node is not None for binding in _bindings(node)]
    everywhere = [
        active.binding
        for active in screen.active_bindings.values()
        if active.node is screen.app or (active.node is screen and not screen.is_modal)
    ]
    lines = [Content(str(getattr(widget, "help_text", ""))), Content("")]
    if keys := _key_lines(here):
        lines += [Content.styled("Keys here", "bold"), *keys, Content("")]
    lines += [Content.styled("Keys everywhere", "bold"), *_key_lines(everywhere)]
    return str(getattr(widget, "help_title", "vidqa")), Content("\n").join(lines)


def _widget_with_help(screen: Screen[object]) -> Widget:
    """Return the focused widget or its nearest ancestor with help."""
    node = screen.focused
    while isinstance(node, Widget) and node is not screen:
        if hasattr(node, "help_text"):
            return node
        node = node.parent  # type: ignore[assignment]
    return screen


def _bindings(widget: Widget) -> list[Binding]:
    return [binding for bindings in widget._bindings.key_to_bindings.values() for binding in bindings]


def _key_lines(bindings: Iterable[Binding]) -> list[Content]:
    """Return a line for each of vidqa's actions: its keys, and what it does."""
    keys: dict[str, list[str]] = {}
    for binding in bindings:
        if binding.id and not binding.system:
            shown = keys.setdefault(binding.tooltip or binding.description, [])
            shown.append(binding.key_display or binding.key)
    names = {text: ", ".join(dict.fromkeys(shown)) for text, shown in keys.items()}
    width = min(max(map(len, names.values()), default=0), _MOST_KEY_COLUMNS)
    return [Content.assemble((f"  {name:<{width}}  ", "bold $accent"), text) for text, name in names.items()]
