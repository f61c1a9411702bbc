"""All that a captioner is made of, as plain data that another process can be told."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vidqa.batch.caption_requests import CaptionRequest
from vidqa.batch.captioner import EngineFactory, PreparedClips, SessionCaptioner, Tell, make_session, nobody
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.config import EngineConfig
from vidqa.types import Placement, Request


@dataclass(frozen=True, slots=True)
class CaptionerConfig:
    """How clips are captioned: the engine, what is asked, the task's key, how many at once, how far ahead."""

    config: EngineConfig
    asking: CaptionRequest
    task_key: str
    batch: int | None = None
    reading: PreparedClips = field(default_factory=PreparedClips)

    def to_object(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)

    @staticmethod
    def from_object(values: Mapping[str, Any]) -> "CaptionerConfig":
        """Back from `to_object`."""
        config, asking = dict(values["config"]), dict(values["asking"])
        if config["placement"] is not None:
            config["placement"] = Placement(**config["placement"])
        request = dict(asking["request"], history=())
        if request["size"] is not None:
            request["size"] = tuple(request["size"])
        return CaptionerConfig(
            EngineConfig(**config),
            CaptionRequest(PromptTemplate(**asking["prompt"]), Request(**request), asking["segments"]),
            values["task_key"],
            values["batch"],
            PreparedClips(**values["reading"]),
        )

    def runner(self, make_engine: EngineFactory | None = None, tell: Tell = nobody) -> SessionCaptioner:
        """A captioner of this process."""
        return SessionCaptioner(
            self.config, self.asking, self.task_key, batch=self.batch, reading=self.reading,
            make_engine=make_engine or make_session, tell=tell,
        )  # fmt: skip


def make_captioner(values: Mapping[str, Any]) -> SessionCaptioner:
    """The captioner of a worker process, from `CaptionerConfig.to_object`."""
    return CaptionerConfig.from_object(values).runner()
