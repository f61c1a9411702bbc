"""Every action that a person can take, once: its id, keys, name, and what it does.

Key bindings, the command palette, the help and the `[keys]` table of the configuration file are
all made from this list. Runs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Place = Literal[
    "global", "app", "transcript", "timeline", "plan", "strip",
    "prompt", "models", "open", "history", "frames", "text", "pick",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Action:
    """One action. `keys` is comma separated, `place` is where its keys work; `shown` puts it in the footer."""

    id: str
    keys: str
    run: str
    name: str
    tooltip: str
    place: Place = "app"
    shown: bool = False
    priority: bool = False


ACTIONS = (
    Action("ask.stop", "escape", "stop", "Stop", "Stop the answer and keep its text", shown=True),
    Action("video.open", "ctrl+o", "open_video", "Open", "Open a video: path, recent, or folders", shown=True),
    Action("help.show", "f1", "help", "Help", "The focused part and its keys", "global", shown=True, priority=True),
    Action("model.choose", "f2", "choose_model", "Model", "Choose the model that answers", shown=True),
    Action("panel.toggle", "f3", "toggle_panel", "Plan", "Show or fold away plan and memory", shown=True),
    Action("history.open", "f4", "history", "History", "Find earlier conversations", shown=True),
    Action("ask.again", "f5", "regenerate", "Again", "Answer the last question anew"),
    Action("ask.edit", "f6", "edit", "Edit question", "Put the last question back into the prompt"),
    Action("answer.copy", "f7", "copy", "Copy answer", "Copy the last answer as Markdown"),
    Action("session.export", "f8", "export", "Export", "Write this conversation as Markdown, JSON or SRT"),
    Action("log.show", "f9", "log", "Log", "What libraries printed while the screen was guarded"),
    Action("frames.view", "f10", "view_frames", "View frames", "See the sampled frames large, one by one"),
    Action("session.new", "ctrl+n", "new_session", "New conversation", "Begin anew with the same video"),
    Action("prompt.focus", "ctrl+l", "focus_prompt", "Go to prompt", "Write a question"),
    Action("app.interrupt", "ctrl+c", "interrupt", "Interrupt", "Copy, stop, or (twice) quit", "global", priority=True),
    Action("app.leave", "ctrl+q", "leave", "Quit", "Leave; all is kept", "global", shown=True, priority=True),
    Action("transcript.copy", "c", "screen.copy", "Copy answer", "Copy the last answer as Markdown", "transcript"),
    Action("transcript.again", "r", "screen.regenerate", "Again", "Answer the last question anew", "transcript"),
    Action("transcript.edit", "e", "screen.edit", "Edit question", "Put the last question back", "transcript"),
    Action("transcript.export", "x", "screen.export", "Export", "Write this conversation to a file", "transcript"),
    Action("transcript.delete", "delete", "screen.delete_turn", "Delete turn", "Delete the last turn", "transcript"),
    Action("transcript.moment", "t", "screen.next_moment", "Next time", "To the next time in the answer", "transcript"),
    Action("timeline.back", "left", "seek(-1)", "Back", "Move the cursor back", "timeline"),
    Action("timeline.forward", "right", "seek(1)", "Forward", "Move the cursor forward", "timeline"),
    Action("timeline.frame_back", "shift+left", "seek_frame(-1)", "Frame back", "To the frame before", "timeline"),
    Action("timeline.frame_on", "shift+right", "seek_frame(1)", "Next frame", "To the next sampled frame", "timeline"),
    Action("timeline.first", "home", "seek_end(-1)", "To start", "Move the cursor to the first moment", "timeline"),
    Action("timeline.last", "end", "seek_end(1)", "To end", "Move the cursor to the last moment", "timeline"),
    Action(
        "timeline.start", "left_square_bracket", "set_start", "Start here", "Look only from the cursor on",
        "timeline", shown=True,
    ),
    Action(
        "timeline.end", "right_square_bracket", "set_end", "End here", "Look only up to the cursor",
        "timeline", shown=True,
    ),
    Action("timeline.whole", "backspace", "whole_video", "Whole video", "Look at all of it", "timeline", shown=True),
    Action("strip.view", "enter", "screen.view_frames", "View frames", "See the frames large", "strip", shown=True),
    Action("plan.less", "left", "change(-1)", "Less", "The value before", "plan", shown=True),
    Action("plan.more", "right", "change(1)", "More", "The next value", "plan", shown=True),
    Action("plan.auto", "backspace", "automatic", "Auto", "Leave it to the planner", "plan", shown=True),
    Action("plan.up", "up", "app.focus_previous", "Up", "The line above", "plan"),
    Action("plan.down", "down", "app.focus_next", "Down", "The line below", "plan"),
    Action("plan.nearest", "ctrl+t", "take_nearest", "Use nearest", "Take the nearest plan that fits"),
)  # fmt: skip

# What has a meaning only where the focus is: while a question is written, and in dialogs.
LOCAL_ACTIONS = (
    Action("prompt.ask", "enter", "ask", "Ask", "Ask this question", "prompt", shown=True),
    Action("prompt.newline", "shift+enter,ctrl+j", "newline", "New line", "Begin a new line", "prompt"),
    Action("prompt.earlier", "up", "earlier", "Earlier", "Earlier questions", "prompt"),
    Action("prompt.later", "down", "later", "Later", "Later questions", "prompt"),
    Action("models.close", "escape", "close", "Back", "Keep the model", "models", shown=True),
    Action("open.close", "escape", "close", "Back", "Open nothing", "open", shown=True),
    Action("open.clear", "ctrl+u", "clear", "Clear", "Empty the path", "open"),
    Action("history.close", "escape", "close", "Back", "Open nothing", "history", shown=True),
    Action("history.list", "down", "to_list", "List", "Into the list", "history"),
    Action("history.delete", "delete", "delete", "Delete", "Delete what is marked (twice)", "history", shown=True),
    Action("frames.close", "escape,q,f10", "close", "Close", "Back to the session", "frames", shown=True),
    Action("frames.before", "left,up", "step(-1)", "Before", "The frame before", "frames", shown=True),
    Action("frames.after", "right,down,space", "step(1)", "After", "The next frame", "frames", shown=True),
    Action("text.close", "escape,q,f1,f9", "close", "Close", "Back to where you were", "text", shown=True),
    Action("pick.close", "escape", "close", "Back", "Choose nothing", "pick", shown=True),
)
ACTION_IDS = tuple(action.id for action in (*ACTIONS, *LOCAL_ACTIONS))


def actions_in(place: Place) -> Iterator[Action]:
    """The actions whose keys work there."""
    return (action for action in (*ACTIONS, *LOCAL_ACTIONS) if action.place == place)
