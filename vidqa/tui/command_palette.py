"""The command palette's entries: one for each action, then Textual's own commands."""

from collections.abc import Awaitable, Callable

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.dom import DOMNode

from vidqa.tui.bindings import ACTIONS, KeyAction

_SYSTEM_SCORE = 0.5  # of Textual's commands, so that vidqa's come first
_NEED_FOCUS = ("plan.less", "plan.more", "plan.auto", "plan.up", "plan.down")  # on a line of the plan


def palette_actions() -> list[KeyAction]:
    """Return one action for each description: some have a second, shorter key in a part of the screen."""
    actions = (action for action in reversed(ACTIONS) if action.id not in _NEED_FOCUS)
    return list({action.description: action for action in actions}.values())[::-1]


class ActionProvider(Provider):
    """Provides `palette_actions` to Textual's command palette, and Textual's commands: providers have no order."""

    async def discover(self) -> Hits:
        """Yield all actions, before anything is typed."""
        for action in palette_actions():
            yield DiscoveryHit(action.description, self._command(action), help=_help(action))
        for title, help_line, callback, discover in self.app.get_system_commands(self.screen):
            if discover:
                yield DiscoveryHit(title, callback, help=help_line)

    async def search(self, query: str) -> Hits:
        """Yield the actions whose description or tooltip matches."""
        matcher = self.matcher(query)
        for action in palette_actions():
            if score := max(matcher.match(action.description), matcher.match(action.tooltip) * 0.8):
                yield Hit(score, matcher.highlight(action.description), self._command(action), help=_help(action))
        for title, help_line, callback, _ in self.app.get_system_commands(self.screen):
            if score := matcher.match(title) * _SYSTEM_SCORE:
                yield Hit(score, matcher.highlight(title), callback, help=help_line)

    def _command(self, action: KeyAction) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            node: DOMNode = self.app.screen_stack[0]
            if action.place == "global":
                node = self.app
            elif not action.action.startswith("screen.") and action.place == "timeline":
                node = node.query_one("#timeline")
            await self.app.run_action(action.action.removeprefix("screen."), node)

        return run


def _help(action: KeyAction) -> str:
    return f"{action.tooltip} ({action.keys})"
