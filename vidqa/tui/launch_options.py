"""The options that the app is started with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidqa.config import EngineConfig
from vidqa.models.download import Report, pull_model
from vidqa.models.registry import has_model
from vidqa.types import Request


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Says whether a model is whole on this machine, and downloads one; `pull` is called as `pull_model`."""

    has_model: Callable[[str], bool] = has_model
    pull: Callable[[str, Report], object] = pull_model


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """`model` and `video` are None where they are to be chosen in the session; `engine` says how models run.

    `request` holds what all questions share: sampling, system prompt, longest answer. `state` is the folder of history
    and log (None keeps nothing); `settings_file` is where a chosen theme is saved. `images` is half, kitty, sixel or
    none. `tick_seconds` is the interval of memory readings between questions; None takes none.
    """

    engine: EngineConfig
    request: Request
    model: str | None = None
    video: str | None = None
    state: Path | None = None
    settings_file: Path | None = None
    theme: str = "textual-dark"
    images: str = "half"
    ascii: bool = False
    keep_history: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)
    tick_seconds: float | None = 1.0
    models: ModelSource = field(default_factory=ModelSource)
