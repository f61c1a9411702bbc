"""One search for a text in a video: encode the candidates of a plan and score them."""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.engine.frame_focus import FrameFocus, question_tokens
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefix_cache import VisionEmbeddings
from vidqa.engine.timers import StageContext
from vidqa.errors import UsageError
from vidqa.events import Event
from vidqa.models.attention.selector import make_kernel
from vidqa.types import Plan, Request
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


@no_grad_generator
def find_stage(
    loaded: "Loaded",
    plan: Plan,
    request: Request,
    stages: StageContext,
    reader: VideoReader | None,
    embeddings: VisionEmbeddings | None = None,
) -> Generator[Event, None, Plan]:
    """Yield the search's events; return the plan with the scores of all slices.

    `reader` is read unless the candidates' `embeddings` are there, from an earlier question.

    Raises UsageError if the plan has no candidates, and VideoError children.
    """
    if not plan.candidates:
        raise UsageError(
            "Neither memory nor time leave room for 2 frames to look at.", "Allow a longer --max-wait or more --vram."
        )
    kernel = make_kernel(plan.run_config.attention, loaded.model.device)
    asked = question_tokens(loaded, request, stages.callbacks.is_cancelled)
    focus = FrameFocus(loaded, plan, asked, kernel, stages, embeddings)
    yield from stages.with_memory_samples(focus.encode(reader))
    selection = yield from stages.with_memory_samples(focus.select())
    assert focus.embeddings is not None
    return replace(plan, selection=selection, candidate_seconds=tuple(focus.embeddings.times))
