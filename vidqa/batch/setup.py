"""All that a captioner is made of, as plain data that another process can be told."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vidqa.batch.jobs import Asking
from vidqa.batch.prompts import Prompt
from vidqa.batch.runner import EngineFactory, Reading, Runner, Tell, make_session, nobody
from vidqa.config import EngineConfig
from vidqa.types import Placement, Request


@dataclass(frozen=True, slots=True)
class Setup:
    """How clips are captioned: the engine, what is asked, the task's key, how many at once, how far ahead."""

    config: EngineConfig
    asking: Asking
    task_key: str
    batch: int | None = None
    reading: Reading = field(default_factory=Reading)

    def to_object(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)

    @staticmethod
    def from_object(values: Mapping[str, Any]) -> "Setup":
        """Back from `to_object`."""
        config, asking = dict(values["config"]), dict(values["asking"])
        if config["placement"] is not None:
            config["placement"] = Placement(**config["placement"])
        request = dict(asking["request"], history=())
        if request["size"] is not None:
            request["size"] = tuple(request["size"])
        return Setup(
            EngineConfig(**config),
            Asking(Prompt(**asking["prompt"]), Request(**request), asking["segments"]),
            values["task_key"],
            values["batch"],
            Reading(**values["reading"]),
        )

    def runner(self, make_engine: EngineFactory | None = None, tell: Tell = nobody) -> Runner:
        """A captioner of this process."""
        return Runner(
            self.config, self.asking, self.task_key, batch=self.batch, reading=self.reading,
            make_engine=make_engine or make_session, tell=tell,
        )  # fmt: skip


def make_captioner(values: Mapping[str, Any]) -> Runner:
    """The captioner of a worker process, from `Setup.to_object`."""
    return Setup.from_object(values).runner()
