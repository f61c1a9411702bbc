"""The last line: the keys of the focused part, each whole or left out; Quit, Help and the palette are always there."""

from collections.abc import Iterable, Sequence

from textual import events
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

_ALWAYS = ("app.leave", "help.show")


class KeyFooter(Footer):
    """Textual's footer cuts keys at the edge; this one shows whole ones only."""

    def compose(self) -> ComposeResult:
        """Yield the keys for which there is room, Quit and Help last, and the palette on the right."""
        if not self._bindings_ready:
            return
        active = self.screen.active_bindings
        shown = [one for one in _each_action(active.values()) if one.binding.show]
        palette = active.get(self.app.COMMAND_PALETTE_BINDING)
        room = self.app.size.width - (self._width(palette) + 2 if palette else 0)
        for one in self._fitting(shown, room):
            yield self._key(one)
        if palette is not None:
            yield self._key(palette, "-command-palette")

    def _fitting(self, shown: Sequence[ActiveBinding], room: int) -> list[ActiveBinding]:
        """Return the keys that fit into `room` columns, in their order; those of _ALWAYS are at the end."""
        always = [one for one in shown if one.binding.id in _ALWAYS]
        room -= sum(self._width(one) + 1 for one in always)
        fitting = []
        for one in shown:
            if one.binding.id not in _ALWAYS:
                room -= self._width(one) + 1
                if room < 0:
                    break
                fitting.append(one)
        return fitting + always

    def _width(self, one: ActiveBinding) -> int:
        return len(self._display(one.binding)) + 1 + len(one.binding.description)

    def _display(self, binding: Binding) -> str:
        return self.app.get_key_display(binding)

    def _key(self, one: ActiveBinding, classes: str = "") -> FooterKey:
        binding = one.binding
        return FooterKey(
            binding.key, self._display(binding), binding.description, binding.action,
            disabled=not one.enabled, tooltip=one.tooltip or binding.description, classes=classes,
        ).data_bind(compact=Footer.compact)  # fmt: skip

    async def on_resize(self, event: events.Resize) -> None:
        """Show the keys that now fit."""
        await self.recompose()


def _each_action(active: Iterable[ActiveBinding]) -> list[ActiveBinding]:
    """Return the first binding of each action."""
    first: dict[str, ActiveBinding] = {}
    for one in active:
        first.setdefault(one.binding.action, one)
    return list(first.values())
