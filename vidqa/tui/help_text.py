"""The help of what is focused: what it shows, its own keys, and those that work everywhere."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget


def help_for(screen: Screen[object]) -> tuple[str, Content]:
    """Title and text for the focused widget, or for the screen where nothing with help is focused."""
    part = _helped(screen)
    own = _keys(_own_bindings(screen.focused or screen))
    everywhere = _keys(
        active.binding
        for active in screen.active_bindings.values()
        if active.node is screen or active.node is screen.app
    )
    pieces = [Content(str(getattr(part, "help_text", ""))), Content("")]
    if own and screen.focused is not None:
        pieces += [Content.styled("Keys here", "bold"), *own, Content("")]
    pieces += [Content.styled("Keys everywhere", "bold"), *everywhere]
    return str(getattr(part, "help_title", "vidqa")), Content("\n").join(pieces)


def _helped(screen: Screen[object]) -> Widget:
    """The nearest part around the focus that has help."""
    node = screen.focused
    while isinstance(node, Widget) and node is not screen:
        if hasattr(node, "help_text"):
            return node
        node = node.parent  # type: ignore[assignment]
    return screen


def _own_bindings(node: Widget) -> Iterable[Binding]:
    """What this app gives a widget comes before what every editor knows."""
    every = (binding for bindings in node._bindings.key_to_bindings.values() for binding in bindings)
    return sorted(every, key=lambda binding: binding.id is None)


def _keys(bindings: Iterable[Binding]) -> list[Content]:
    """A line per action: all its keys together, what it does, and the id by which it can be remapped."""
    keys: dict[tuple[str, str], list[str]] = {}
    for binding in bindings:
        told = binding.tooltip or binding.description
        if told and not binding.system:
            what = told if told == binding.description or not binding.description else f"{binding.description}: {told}"
            keys.setdefault((what, binding.id or ""), []).append(binding.key_display or binding.key)
    return [
        Content.assemble((f"  {', '.join(names):<18} ", "bold $accent"), what, (f"  {id}", "$foreground-muted"))
        for (what, id), names in keys.items()
    ]
