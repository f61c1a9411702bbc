"""Which visual tokens of a training batch are kept: those whose pixels changed most, or any."""

import random

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

LEAST_SHARE = 1 / 16  # of a slice's tokens


def draw_kept(rng: random.Random, pixels: Tensor, side: int) -> Tensor:
    """Draw the kept tokens (clips, slices, tokens) of frames (clips, frames, 3, height, width); a token has a `side`.

    The first slice stays whole. Of the others, the tokens whose pixels differ most from the slice before are kept, in
    one of four clips any tokens: in half of the clips a share of all tokens, in the other half most tokens of slices
    where something changes, and few of the rest.
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
        kept[clip, 1:] = (
            _by_slice(rng, score[clip]) if rng.random() < 0.5 else _highest(score[clip], rng.uniform(0.1, 1))
        )
    return kept


def _by_slice(rng: random.Random, score: Tensor) -> Tensor:
    """Return most or all tokens (slices, tokens) of the slices with the highest score, and few of the others.

    A change of color changes what the vision tower says of most tokens of a slice.
    """
    slices, tokens = score.shape
    least, changed = _least(tokens), score.amax(1).topk(min(rng.randint(1, 3), slices)).indices.tolist()
    most, kept = rng.choice((least, max(tokens // 2, least))), torch.zeros(score.shape, dtype=torch.bool)
    for number in range(slices):
        busy = number in changed or rng.random() < 0.1
        count = rng.choice((tokens, rng.randint(tokens // 3, tokens))) if busy else rng.randint(least, most)
        kept[number, score[number].topk(count).indices] = True
    return kept


def _highest(score: Tensor, share: float) -> Tensor:
    """Return the share of all tokens (slices, tokens) with the highest scores, and the least of every slice."""
    slices, tokens = score.shape
    least = _least(tokens)
    ranked = score.clone()
    ranked.scatter_(1, score.topk(least, 1).indices, float("inf"))
    count = max(round(share * slices * tokens), least * slices)
    kept = torch.zeros(slices * tokens, dtype=torch.bool)
    kept[ranked.flatten().topk(count).indices] = True
    return kept.view(slices, tokens)


def _least(tokens: int) -> int:
    """Return the tokens that every slice keeps at least."""
    return max(round(tokens * LEAST_SHARE), 1)
