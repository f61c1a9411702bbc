"""What will run for one request, from the files' headers: no weights, no frame, no torch."""

from dataclasses import dataclass

from vidqa.config import EngineConfig
from vidqa.errors import DoesNotFit, UsageError
from vidqa.models.specs import ModelSpec
from vidqa.types import PixelBounds, Request, VideoInfo
from vidqa.video.sampling import choose_indices, frame_size

VISION_CHUNK_SLICES = 8
PREFILL_CHUNK_TOKENS = 1024
_MAX_SLICE_TOKENS = 16_384  # the largest picture Qwen2-VL was made for (qwen-vl-utils 0.0.14)


@dataclass(frozen=True, slots=True)
class Draft:
    """Frames to take (indices into the video), the size to give them, and the chunks to run in."""

    indices: tuple[int, ...]
    height: int
    width: int
    visual_tokens: int
    vision_chunk: int
    prefill_chunk: int


def check_request(request: Request) -> None:
    """Refuse what cannot be, before any file is opened; raises UsageError."""
    if not request.question.strip():
        raise UsageError("The question is empty.", 'Ask for example "what happens?".')
    if request.max_tokens < 1:
        raise UsageError(f"--max-tokens {request.max_tokens} leaves no room for an answer.", "Use 1 or more.")
    if not 0 <= request.temperature < float("inf"):
        raise UsageError(f"--temperature {request.temperature} is not 0 or more.", "Use 0 for the likeliest words.")
    if not 0 < request.top_p <= 1:
        raise UsageError(f"--top-p {request.top_p} is not above 0 and at most 1.", "Use for example 0.9.")


def draft_plan(config: EngineConfig, request: Request, video: VideoInfo, spec: ModelSpec, bounds: PixelBounds) -> Draft:
    """Choose frames and their size by the checkpoint's rule or as asked."""
    indices = choose_indices(
        video,
        frames=request.frames,
        fps=request.fps,
        start_seconds=request.start_seconds,
        end_seconds=request.end_seconds,
        bounds=bounds,
    )
    height, width = _asked_size(request, spec) or frame_size(
        video.height, video.width, len(indices), bounds, factor=spec.pixel_factor
    )
    return Draft(
        indices=indices,
        height=height,
        width=width,
        visual_tokens=spec.visual_tokens(len(indices), height, width),
        vision_chunk=config.vision_chunk or VISION_CHUNK_SLICES,
        prefill_chunk=config.prefill_chunk or PREFILL_CHUNK_TOKENS,
    )


def _asked_size(request: Request, spec: ModelSpec) -> tuple[int, int] | None:
    """`--size` rounded to whole tokens, as (height, width)."""
    if request.size is None:
        return None
    factor = spec.pixel_factor
    width, height = (max(factor, round(side / factor) * factor) for side in request.size)
    tokens = height // factor * (width // factor)
    if tokens > _MAX_SLICE_TOKENS:
        raise UsageError(
            f"A frame of {width}x{height} is {tokens} tokens; the model takes at most {_MAX_SLICE_TOKENS}.",
            "Ask for a smaller --size.",
        )
    return height, width


def check_context(spec: ModelSpec, draft: Draft, prompt_tokens: int, max_tokens: int) -> None:
    """Refuse what is longer than the model's context; raises DoesNotFit with the way out."""
    needed = prompt_tokens + max_tokens
    if needed <= spec.context_tokens:
        return
    raise DoesNotFit(
        f"{len(draft.indices)} frames of {draft.width}x{draft.height} make {draft.visual_tokens} visual tokens; with "
        f"the question and {max_tokens} tokens of answer that is {needed}, and the model's context is "
        f"{spec.context_tokens}.",
        "Use fewer --frames, a smaller --size, a shorter --start/--end range or fewer --max-tokens.",
    )
