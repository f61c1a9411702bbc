"""What the app is started with. Frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidqa.config import EngineConfig
from vidqa.types import Request


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """`model` and `video` are None where the person has yet to choose. `engine` is how models are run.

    `request` holds what is the same for all questions: sampling, system prompt, longest answer. `state` is the
    folder of history and log (None keeps nothing), `settings_file` where a chosen theme is written back.
    `images` is how pictures are shown: half, kitty, sixel or none. `tick_seconds` is the time between looks at
    the memory between questions, None for no looks.
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
