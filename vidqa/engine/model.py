"""The model of a session: which checkpoint it is, and what a plan may no longer choose once it is loaded.

Knows which settings are settled by loading. Runs nothing.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.config import EngineConfig
from vidqa.engine.planning import Forecast, forecast, tasks_for
from vidqa.memory.device import find_device
from vidqa.memory.search import Task
from vidqa.models.choice import Checkpoint, find_checkpoints
from vidqa.types import Request, VideoInfo

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


class Model:
    """A session's model: nothing at first, then a checkpoint with its weights on a device."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.checkpoint: Checkpoint | None = None
        self.config: EngineConfig | None = None
        self.runtime_bytes = 0
        self._known: dict[str, list[Checkpoint]] = {}

    def drop(self) -> None:
        """Let go of the weights."""
        self.loaded = self.checkpoint = self.config = None
        self._known.clear()

    def serves(self, config: EngineConfig) -> bool:
        """Whether what is loaded is what these settings ask for: model, device, weights and placement."""
        if self.loaded is None or self.config is None:
            return False
        weights = config.weights in (self.config.weights, self.loaded.weights)
        return weights and _place(config) == _place(self.config)

    def checkpoints(self, config: EngineConfig) -> list[Checkpoint]:
        """What may be planned by these settings, read once: for a face that asks with every key."""
        if self.checkpoint is not None and self.serves(config):
            return [self.checkpoint]
        if config.model not in self._known:
            self._known[config.model] = find_checkpoints(config.model, local=False)
        return self._known[config.model]

    def pin(self, tasks: list[Task]) -> list[Task]:
        """Tasks of the loaded checkpoint alone: what is loaded stays as it is."""
        if (loaded := self.loaded) is None:
            return tasks
        return [replace(task, pinned_weights=loaded.weights, pinned_placement=loaded.placement) for task in tasks]

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig) -> Forecast:
        """What a question would run by these settings, on the device as it is now."""
        checkpoints, served = self.checkpoints(config), self.serves(config)
        tasks = tasks_for(checkpoints, video, request, config, find_device(config.device))
        return forecast(self.pin(tasks) if served else tasks)


def _place(config: EngineConfig) -> tuple[object, ...]:
    return config.model, config.device, config.placement
