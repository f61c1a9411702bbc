"""The list of all actions. Key bindings, command palette, help and the `[keys]` settings are made from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding, BindingType

Place = Literal[
    "global", "app", "transcript", "timeline", "plan", "strip",
    "prompt", "moments", "models", "open", "history", "frames", "text", "pick", "line",
]  # fmt: skip
_KEY_DISPLAY = {"left_square_bracket": "[", "right_square_bracket": "]"}


@dataclass(frozen=True, slots=True)
class KeyAction:
    """A `textual.binding.Binding` and the `place` (part of the screen or dialog) where it works.

    `keys` is comma separated, `action` is what Textual runs, and `id` is the action's name in `[keys]`.
    """

    id: str
    keys: str
    action: str
    description: str
    tooltip: str
    place: Place = "app"
    show: bool = False
    priority: bool = False


ACTIONS = (
    KeyAction("video.open", "ctrl+o", "open_video", "Open", "Open a video by path, recent or from a folder", show=True),
    KeyAction("ask.stop", "escape", "stop", "Stop", "Stop the answer and keep its text", show=True),
    KeyAction("help.show", "f1", "help", "Help", "Explain the focused part", "global", show=True, priority=True),
    KeyAction("model.choose", "f2", "choose_model", "Model", "Choose the model that answers", show=True),
    KeyAction("panel.toggle", "f3", "toggle_panel", "Plan", "Show or hide the plan and memory panels", show=True),
    KeyAction("history.open", "f4", "history", "History", "Search earlier conversations", show=True),
    KeyAction("ask.again", "f5", "regenerate", "Again", "Ask the last question again"),
    KeyAction("ask.edit", "f6", "edit_question", "Edit question", "Put the last question back into the prompt"),
    KeyAction("answer.copy", "f7", "copy_answer", "Copy answer", "Copy the last answer as Markdown"),
    KeyAction("session.export", "f8", "export", "Export", "Write this conversation as Markdown, JSON or SRT"),
    KeyAction("log.show", "f9", "show_log", "Log", "Show what libraries have printed"),
    KeyAction("frames.view", "f10", "view_frames", "View frames", "Show the sampled frames in full size"),
    KeyAction("find.moment", "f12,ctrl+f", "find", "Find a moment", "Search the video for what a text names"),
    KeyAction("session.new", "ctrl+n", "new_conversation", "New conversation", "Start again with the same video"),
    KeyAction("prompt.focus", "ctrl+l", "focus_prompt", "Go to prompt", "Write a question"),
    KeyAction(
        "app.interrupt", "ctrl+c", "interrupt", "Interrupt", "Copy the selection, stop the answer, or (twice) quit",
        "global", priority=True,
    ),
    KeyAction("app.leave", "ctrl+q", "quit", "Quit", "Quit; the history is saved", "global", show=True, priority=True),
    KeyAction("transcript.copy", "c", "screen.copy_answer", "Copy answer", "Copy the last answer", "transcript"),
    KeyAction("transcript.again", "r", "screen.regenerate", "Again", "Ask the last question again", "transcript"),
    KeyAction("transcript.edit", "e", "screen.edit_question", "Edit question", "Edit the last question", "transcript"),
    KeyAction("transcript.export", "x", "screen.export", "Export", "Write this conversation to a file", "transcript"),
    KeyAction("transcript.delete", "delete", "screen.delete_turn", "Delete turn", "Delete the last turn", "transcript"),
    KeyAction(
        "transcript.moment", "t", "screen.next_timestamp", "Next time", "Go to the next time in the answer",
        "transcript",
    ),
    KeyAction(
        "transcript.figures", "m", "screen.toggle_figures", "Figures",
        "Open or fold time, tokens and memory of the last answer", "transcript",
    ),
    KeyAction("timeline.back", "left", "seek(-1)", "Back", "Move the cursor back", "timeline"),
    KeyAction("timeline.forward", "right", "seek(1)", "Forward", "Move the cursor forward", "timeline"),
    KeyAction(
        "timeline.frame_back", "shift+left", "seek_frame(-1)", "Previous frame", "Go to the previous sampled frame",
        "timeline",
    ),
    KeyAction(
        "timeline.frame_on", "shift+right", "seek_frame(1)", "Next frame", "Go to the next sampled frame", "timeline"
    ),
    KeyAction("timeline.first", "home", "seek_end(-1)", "To start", "Move the cursor to the start", "timeline"),
    KeyAction("timeline.last", "end", "seek_end(1)", "To end", "Move the cursor to the end", "timeline"),
    KeyAction(
        "timeline.start", "left_square_bracket", "set_start", "Start here", "Use the video from the cursor on",
        "timeline", show=True,
    ),
    KeyAction(
        "timeline.end", "right_square_bracket", "set_end", "End here", "Use the video up to the cursor",
        "timeline", show=True,
    ),
    KeyAction("timeline.whole", "backspace", "whole_video", "Whole video", "Use the full video", "timeline", show=True),
    KeyAction("strip.view", "enter", "screen.view_frames", "View frames", "Show the frames", "strip", show=True),
    KeyAction("plan.less", "left", "step(-1)", "Less", "Choose the previous value", "plan", show=True),
    KeyAction("plan.more", "right", "step(1)", "More", "Choose the next value", "plan", show=True),
    KeyAction("plan.auto", "backspace", "reset", "Auto", "Let the planner choose", "plan", show=True),
    KeyAction("plan.up", "up", "app.focus_previous", "Up", "Go to the line above", "plan"),
    KeyAction("plan.down", "down", "app.focus_next", "Down", "Go to the line below", "plan"),
    KeyAction("plan.nearest", "ctrl+t", "take_nearest", "Use nearest", "Use the nearest plan that fits"),
)  # fmt: skip

# Actions that make sense only where the focus is: in the prompt and in dialogs. The palette leaves them out.
LOCAL_ACTIONS = (
    KeyAction("prompt.ask", "enter", "ask", "Ask", "Ask this question", "prompt", show=True),
    KeyAction("prompt.newline", "shift+enter,ctrl+j", "newline", "New line", "Start a new line", "prompt"),
    KeyAction("prompt.earlier", "up", "earlier", "Earlier", "Show the previous question", "prompt"),
    KeyAction("prompt.later", "down", "later", "Later", "Show the next question", "prompt"),
    KeyAction("moments.ask", "enter", "select", "Ask", "Ask the next question about this moment", "moments", show=True),
    KeyAction("moments.remove", "delete", "remove_search", "Remove", "Remove this search and its marks", "moments"),
    KeyAction("models.close", "escape", "dismiss", "Back", "Keep the current model", "models", show=True),
    KeyAction("open.close", "escape", "dismiss", "Back", "Close without opening a video", "open", show=True),
    KeyAction("open.clear", "ctrl+u", "clear", "Clear", "Clear the path", "open"),
    KeyAction("history.close", "escape", "dismiss", "Back", "Close without opening one", "history", show=True),
    KeyAction("history.list", "down", "focus_list", "List", "Go to the list", "history"),
    KeyAction("history.delete", "delete", "delete", "Delete", "Delete the selected one (twice)", "history", show=True),
    KeyAction("frames.close", "escape,q,f10", "close", "Close", "Return to the session", "frames", show=True),
    KeyAction("frames.before", "left,up", "step(-1)", "Previous", "Show the previous frame", "frames", show=True),
    KeyAction("frames.after", "right,down,space", "step(1)", "Next", "Show the next frame", "frames", show=True),
    KeyAction("text.close", "escape,q,f1,f9", "dismiss", "Close", "Close this text", "text", show=True),
    KeyAction("pick.close", "escape", "dismiss", "Back", "Close without a choice", "pick", show=True),
    KeyAction("line.close", "escape", "dismiss", "Back", "Close without a text", "line", show=True),
)
ACTION_IDS = tuple(action.id for action in (*ACTIONS, *LOCAL_ACTIONS))


def actions_in(place: Place) -> Iterator[KeyAction]:
    """Yield the actions of one place."""
    return (action for action in (*ACTIONS, *LOCAL_ACTIONS) if action.place == place)


def bindings_for(place: Place) -> list[BindingType]:
    """Return the bindings of one place; the `[keys]` settings change them by id."""
    return [
        Binding(
            action.keys,
            action.action,
            action.description,
            show=action.show,
            key_display=_KEY_DISPLAY.get(action.keys),
            priority=action.priority,
            tooltip=action.tooltip,
            id=action.id,
        )
        for action in actions_in(place)
    ]
