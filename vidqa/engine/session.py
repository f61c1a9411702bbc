"""Session: the one object that every face drives. A question goes in, events come out.

Opens the video first (a bad file fails before a model is loaded), loads the model once,
and runs the pipeline. Single-flight: one `ask` at a time; `cancel` from any thread.
"""

import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vidqa.config import EngineConfig
from vidqa.engine.planning import check_request, draft_plan
from vidqa.engine.timing import Stopwatch
from vidqa.errors import Interrupted, UsageError
from vidqa.events import Event, StageProgress, StageStarted
from vidqa.models.hub import resolve_model
from vidqa.models.specs import read_bounds, read_spec
from vidqa.types import Request
from vidqa.video.decode import open_video

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


class Session:
    """Answers questions about videos with one loaded model.

    Errors are raised, progress is yielded; the last event of an `ask` is `Answered`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._loaded: Loaded | None = None
        self._flight = threading.Lock()
        self._cancelled = threading.Event()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Request) -> Iterator[Event]:
        """Answer one question. Raises VidqaError children; closing the iterator frees what it held."""
        check_request(request)
        return self._ask(request)

    def cancel(self) -> None:
        """Ask the running `ask` to stop at the next chunk or token; callable from any thread."""
        self._cancelled.set()

    def close(self) -> None:
        """Let go of the model."""
        self.cancel()
        self._loaded = None

    def _ask(self, request: Request) -> Generator[Event, None, None]:
        if not self._flight.acquire(blocking=False):
            raise UsageError("This session is answering another question.", "Wait for it or cancel it.")
        try:
            self._cancelled.clear()
            yield from self._answer(request)
        finally:
            self._flight.release()

    def _answer(self, request: Request) -> Generator[Event, None, None]:
        accepted = Stopwatch()
        folder = resolve_model(self.config.model)
        spec, bounds = read_spec(folder), read_bounds(folder)
        config = self.config
        with open_video(
            request.video, isolated=config.isolate_decoder, deadline_seconds=config.decoder_deadline_seconds
        ) as reader:
            draft = draft_plan(config, request, reader.info, spec, bounds)
            load_seconds = yield from self._load(folder)
            from vidqa.engine.pipeline import Pipeline  # torch: after the files were found good

            accepted.exclude(load_seconds)
            pipeline = Pipeline(
                self._loaded_model(), reader, draft, request, config.attention, self._cancelled.is_set, accepted
            )
            yield from pipeline.run(config.model, load_seconds)

    def _load(self, folder: Path) -> Generator[Event, None, float]:
        """Load the model unless it is there; returns the seconds that it took now."""
        if self._loaded is not None:
            return 0.0
        watch = Stopwatch()
        yield StageStarted("load", 1)
        from vidqa.models.loader import choose_device, choose_dtype, load_model

        device = choose_device(self.config.device)
        self._loaded = load_model(folder, device, choose_dtype(device))
        yield StageProgress("load", 1, 1)
        if self._cancelled.is_set():
            raise Interrupted("Stopped while the model was loaded.", "Nothing was answered yet.")
        return watch.seconds()

    def _loaded_model(self) -> "Loaded":
        if self._loaded is None:
            raise UsageError("This session is closed.", "Open another one.")
        return self._loaded
