"""The dialog that opens a video: a path with completion, recent videos, and a folder tree."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import DirectoryTree, Input, OptionList, Static
from textual.widgets._directory_tree import DirEntry
from textual.widgets.option_list import Option
from textual.widgets.tree import TreeNode

from vidqa.errors import UsageError
from vidqa.tui.bindings import bindings_for
from vidqa.tui.widgets.question_input import dropped_path
from vidqa.utils.safe_text import safe_line
from vidqa.video.path_completion import complete_path, is_video_name
from vidqa.video.picture_folder import is_picture_folder
from vidqa.video.video_input import local_path


class _PathSuggester(Suggester):
    """Suggests the first completion of a path."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the first completion."""
        return next((path for path in complete_path(value) if path != value), None)


class _VideoTree(DirectoryTree):
    """Shows folders and videos, without hidden ones."""

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Return the folders and videos."""
        shown = (path for path in paths if not path.name.startswith("."))
        return [path for path in shown if is_video_name(path.name) or os.path.isdir(path)]

    def render_label(self, node: TreeNode[DirEntry], base_style: Style, style: Style) -> Text:
        """Return the label, made safe: a file name may contain control characters."""
        label = super().render_label(node, base_style, style)
        label.plain = safe_line(label.plain)
        return label


class OpenVideoScreen(ModalScreen[str | None]):
    """Returns a path, or None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("open")
    AUTO_FOCUS = "#path"
    help_title = "Open a video"
    help_text = (
        "Type a path (Right or Tab completes it, Enter opens it), choose a recent video, or use the folder tree. Tab "
        "moves between the three. A folder of numbered pictures opens as one video."
    )

    def __init__(self, recent: Sequence[str], folder: Path) -> None:
        super().__init__()
        self._recent, self._folder = tuple(recent), folder

    def compose(self) -> ComposeResult:
        """Yield the path, then recent videos and the tree side by side."""
        with Vertical(classes="dialog wide"):
            yield Static("Open a video", classes="title", markup=False)
            yield Input(placeholder="path of a video", suggester=_PathSuggester(), id="path")
            yield Static("", id="path-error", markup=False)
            with Horizontal(id="browse"):
                with Vertical(id="recent-column"):
                    yield Static("Recent", classes="label", markup=False)
                    yield OptionList(*(Option(Content(_short(path))) for path in self._recent), id="recent")
                with Vertical(id="tree-column"):
                    yield Static(f"In {safe_line(str(self._folder))}", classes="label", id="tree-label", markup=False)
                    yield _VideoTree(self._folder, id="tree")
            yield Static("Enter open · → complete · Tab next · Esc back", classes="keys", markup=False)

    def on_mount(self) -> None:
        """Hide the list of recent videos if there are none."""
        self.query_one("#recent-column").display = bool(self._recent)

    def on_key(self, event: events.Key) -> None:
        """Complete the path on Tab; without a completion, Tab moves the focus."""
        path = self.query_one("#path", Input)
        if event.key == "tab" and path.has_focus and path.value:
            found = complete_path(path.value)
            if found and found[0] != path.value:
                event.prevent_default()
                event.stop()
                path.value = found[0]
                path.cursor_position = len(path.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Remove the error of the previous path."""
        self.query_one("#path-error", Static).update("")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return a file or a folder of pictures, show another folder in the tree, or show an error."""
        try:
            typed = dropped_path(event.value) or local_path(event.value.strip())
        except UsageError as refusal:
            self._show_error(str(refusal))
            return
        path = Path(os.path.expanduser(typed))  # pathlib's raises for an unknown user, as its is_dir for a long name
        if not typed:
            self._show_error("type a path or choose a video below")
        elif os.path.isfile(path) or _is_video_folder(path):
            self.dismiss(str(path))
        elif os.path.isdir(path):
            self._show_folder(path)
        else:
            self._show_error(f"there is no file {typed}")

    def _show_error(self, text: str) -> None:
        self.query_one("#path-error", Static).update(f"✗ {safe_line(text)}")

    def _show_folder(self, folder: Path) -> None:
        tree = self.query_one("#tree", _VideoTree)
        tree.path = folder
        self.query_one("#tree-label", Static).update(f"In {safe_line(os.path.abspath(folder))}")
        tree.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return a recent video."""
        self.dismiss(self._recent[event.option_index])

    def on_directory_tree_file_selected(self, event: DirectoryTree.FileSelected) -> None:
        """Return a video of the tree."""
        if is_video_name(event.path.name):
            self.dismiss(str(event.path))

    def on_directory_tree_directory_selected(self, event: DirectoryTree.DirectorySelected) -> None:
        """Return a folder of pictures."""
        if _is_video_folder(event.path):
            self.dismiss(str(event.path))

    def action_clear(self) -> None:
        """Clear the path."""
        self.query_one("#path", Input).value = ""


def _is_video_folder(path: Path) -> bool:
    """Return whether a folder holds numbered pictures, and no folder in which a video may be looked for."""
    if not is_picture_folder(str(path)):
        return False
    with os.scandir(path) as entries:
        return not any(entry.is_dir() for entry in entries if not entry.name.startswith("."))


def _short(path: str) -> str:
    """Return the path relative to the current folder or the home folder, if it lies in one of them."""
    for start, shown in ((str(Path.cwd()), ""), (str(Path.home()), "~/")):
        if path.startswith(start + "/"):
            return shown + safe_line(path.removeprefix(start + "/"))
    return safe_line(path)
