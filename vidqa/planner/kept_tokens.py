"""Visual tokens that are left after those that repeat are dropped (`--prune`). Arithmetic only.

Every temporal slice keeps at least a 16th of its tokens, and the first one is whole.
"""

from vidqa.models.spec import ModelSpec
from vidqa.types import RunConfig

LEAST_SHARE = 16  # of a slice's tokens one in so many is kept


def least_slice_tokens(slice_tokens: int) -> int:
    """Return the fewest tokens that a slice keeps."""
    return -(-slice_tokens // LEAST_SHARE)


def kept_tokens(spec: ModelSpec, frames: int, height: int, width: int, share: float) -> int:
    """Return the most visual tokens of frames of which a share is kept, and what every slice keeps at least."""
    slices, each = spec.slices(frames), spec.slice_tokens(height, width)
    if share >= 1:
        return slices * each
    return max(int(share * slices * each), each + (slices - 1) * least_slice_tokens(each))


def kept_visual_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the most visual tokens of a run's prompt."""
    return kept_tokens(spec, run_config.frames, run_config.height, run_config.width, run_config.visual_share)


def kept_video_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the most tokens of a video in a prompt: its pictures', and the text's between its slices."""
    return kept_visual_tokens(spec, run_config) + spec.slices(run_config.frames) * spec.slice_text_tokens


def drops_tokens(run_config: RunConfig) -> bool:
    """Return whether a run drops visual tokens."""
    return run_config.drop_repeats or run_config.visual_share < 1
