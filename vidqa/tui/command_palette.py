"""The palette: every action by its name."""

from collections.abc import Awaitable, Callable

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.dom import DOMNode

from vidqa.tui.bindings import ACTIONS, Action

_WITH_A_LINE = ("plan.less", "plan.more", "plan.auto", "plan.up", "plan.down")  # they need a line of the plan


class Actions(Provider):
    """All of `ACTIONS`, each once."""

    async def discover(self) -> Hits:
        """Everything, before anything is typed."""
        for action in _unique():
            yield DiscoveryHit(action.name, self._runner(action), help=_help(action))

    async def search(self, query: str) -> Hits:
        """What matches by name or by meaning."""
        matcher = self.matcher(query)
        for action in _unique():
            if score := max(matcher.match(action.name), matcher.match(action.tooltip) * 0.8):
                yield Hit(score, matcher.highlight(action.name), self._runner(action), help=_help(action))

    def _runner(self, action: Action) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            base = self.app.screen_stack[0]
            node: DOMNode = base
            if action.place == "global":
                node = self.app
            elif not action.run.startswith("screen.") and action.place == "timeline":
                node = base.query_one("#timeline")
            await self.app.run_action(action.run.removeprefix("screen."), node)

        return run


def _unique() -> list[Action]:
    """One entry per name: some actions have a second, shorter key in a part of the screen."""
    chosen = (action for action in reversed(ACTIONS) if action.id not in _WITH_A_LINE)
    return list({action.name: action for action in chosen}.values())[::-1]


def _help(action: Action) -> str:
    return f"{action.tooltip} ({action.keys})"
