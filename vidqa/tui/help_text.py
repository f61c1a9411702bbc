"""The help of the focused widget: what it shows, its keys, and the keys that work everywhere."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget


def help_for(screen: Screen[object]) -> tuple[str, Content]:
    """Return title and text for the focused widget; for the screen if no focused widget has a `help_text`."""
    widget = _widget_with_help(screen)
    everywhere = (
        active.binding
        for active in screen.active_bindings.values()
        if active.node is screen or active.node is screen.app
    )
    lines = [Content(str(getattr(widget, "help_text", ""))), Content("")]
    if screen.focused is not None and (own := _key_lines(_own_bindings(screen.focused))):
        lines += [Content.styled("Keys here", "bold"), *own, Content("")]
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


def _own_bindings(widget: Widget) -> Iterable[Binding]:
    """Return vidqa's bindings of a widget, which have ids, before Textual's."""
    bindings = (binding for bindings in widget._bindings.key_to_bindings.values() for binding in bindings)
    return sorted(bindings, key=lambda binding: binding.id is None)


def _key_lines(bindings: Iterable[Binding]) -> list[Content]:
    """Return a line for each action: its keys, what it does, and its id in the `[keys]` settings."""
    keys: dict[tuple[str, str], list[str]] = {}
    for binding in bindings:
        if binding.system:
            continue
        text = ": ".join(dict.fromkeys(part for part in (binding.description, binding.tooltip) if part))
        if text:
            keys.setdefault((text, binding.id or ""), []).append(binding.key_display or binding.key)
    return [
        Content.assemble((f"  {', '.join(names):<18} ", "bold $accent"), text, (f"  {id}", "$foreground-muted"))
        for (text, id), names in keys.items()
    ]
