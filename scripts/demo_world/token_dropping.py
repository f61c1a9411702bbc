"""Which visual tokens of a training batch are kept: those whose pixels changed most, or any."""

import random

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

LEAST_SHARE = 1 / 16  # of a slice's tokens


def draw_kept(rng: random.Random, pixels: Tensor, side: int) -> Tensor:
    """Draw the kept tokens (clips, slices, tokens) of frames (clips, frames, 3, height, width); a token has a `side`.

    The first slice stays whole. Of the others a share is kept, drawn for each clip: the tokens whose pixels differ most
    from the slice before, in one of four clips any tokens.
    """
    clips, frames = pixels.shape[:2]
    grey = pixels.float().mean(2).view(clips, frames // 2, 2, *pixels.shape[3:])
    moved = (grey[:, 1:] - grey[:, :-1]).abs().amax(2)  # (clips, slices - 1, height, width)
    score = avg_pool2d(moved, side).flatten(2)
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    anyhow = torch.tensor([rng.random() < 0.25 for _ in range(clips)])[:, None, None]
    score = torch.where(anyhow, torch.rand(score.shape, generator=generator), score)
    kept = torch.ones(clips, frames // 2, score.shape[2], dtype=torch.bool)
    for clip in range(clips):
        share = rng.uniform(0.1, 1.0)
        kept[clip, 1:] = _highest(score[clip], share)
    return kept


def _highest(score: Tensor, share: float) -> Tensor:
    """Return the share of all tokens (slices, tokens) with the highest scores, and the least of every slice."""
    slices, tokens = score.shape
    least = max(round(tokens * LEAST_SHARE), 1)
    ranked = score.clone()
    ranked.scatter_(1, score.topk(least, 1).indices, float("inf"))
    count = max(round(share * slices * tokens), least * slices)
    kept = torch.zeros(slices * tokens, dtype=torch.bool)
    kept[ranked.flatten().topk(count).indices] = True
    return kept.view(slices, tokens)
