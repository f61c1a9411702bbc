"""One search for a text in a video: encode the candidates of a plan and score them."""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.engine.frame_focus import FrameFocus, question_tokens
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefix_cache import VisionEmbeddings
from vidqa.engine.timers import StageContext
from vidqa.errors import UsageError
from vidqa.events import Event, OutOfDomain
from vidqa.models.attention.selector import make_kernel
from vidqa.types import Plan, Request
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


def focus_of(
    loaded: "Loaded", plan: Plan, request: Request, stages: StageContext, embeddings: VisionEmbeddings | None
) -> FrameFocus:
    """Return what scores a plan's candidates for a text; `embeddings` are theirs, from an earlier request.

    Raises UsageError if the plan has no candidates.
    """
    if not plan.candidates:
        raise UsageError(
            "Neither memory nor time leave room for 2 frames to look at.", "Allow a longer --max-wait or more --vram."
        )
    kernel = make_kernel(plan.run_config.attention, loaded.model.device)
    asked = question_tokens(loaded, request, stages.callbacks.is_cancelled)
    return FrameFocus(loaded, plan, asked, kernel, stages, embeddings)


@no_grad_generator
def find_stage(
    focus: FrameFocus, loaded: "Loaded", plan: Plan, stages: StageContext, reader: VideoReader | None
) -> Generator[Event, None, Plan]:
    """Yield the search's events; return the plan with the scores of all slices.

    `reader` is read unless `focus` has the candidates' embeddings. Raises VideoError children.
    """
    earlier, model = focus.embeddings, loaded.model
    if earlier is not None and earlier.out_of_domain and model.domain:  # else their encoding says so
        yield OutOfDomain(model.domain.knows)
    try:
        yield from stages.with_memory_samples(focus.encode(reader))
        selection = yield from stages.with_memory_samples(focus.select())
    finally:
        if plan.run_config.placement.vision_offloaded:  # also after a stop: the conversation goes on without it
            model.visual.to("cpu")
    assert focus.embeddings is not None
    return replace(plan, selection=selection, candidate_seconds=tuple(focus.embeddings.times))
