"""Drops visual tokens that repeat what was seen before at their place (`--prune`).

After the vision tower, each token of a temporal slice is compared with the last kept one at the same row and column,
and with the mean of its own slice. Tokens that do not repeat the last kept one are kept first; of these, the ones whose
larger cosine is smallest. They keep their own positions; the first slice is whole. Slices are taken in order, in groups
of any size.

The mean is for moving cameras: every token is new at its place there, and tokens unlike the mean show objects more
often than backdrop. VidCom2 (arXiv 2505.14454) compares tokens with the mean of their frame, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vidqa.devices.torch_device import to_device
from vidqa.engine.no_grad import no_grad_scope
from vidqa.engine.vision import EncodedGroup
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import least_slice_tokens
from vidqa.types import Plan

# Cosine from which a token repeats the one before. In the demo model 98 % of the tokens whose pixels changed by less
# than 2 of 255 levels, in slices without a greater change, are above it, and 7 % of those that changed by more than 16
# (still clips of bench_prune.py). A change also alters what the tower says of the rest of its slice: 36 % of the
# unchanged tokens there are below 0.8, and 63 % would be below 0.9.
REPEAT_SIMILARITY = 0.8
_SPARE_SHARE = 0.25


class TokenBudget:
    """Divides a number of tokens among the slices after the first, as they come.

    What quiet slices save is left for busy ones. With `exact` all of it is used, else no slice gets more than it has
    new tokens. Every slice gets at least a 16th.
    """

    def __init__(self, tokens: int, slices: int, slice_tokens: int, *, exact: bool) -> None:
        self.left = tokens
        self._slices_left, self._whole, self._exact = slices, slice_tokens, exact
        self._least = least_slice_tokens(slice_tokens)
        self._seen, self._novelty = 0, 0.0

    def take(self, novelty: float, new: int) -> int:
        """Return the tokens of the next slice.

        Without `exact` it may use a quarter of what later slices need not have: most may be as quiet as forecast.
        `novelty` is the sum of its tokens' distances (1 - cosine), and `new` how many of them do not repeat. Half of an
        even division is every slice's; the other half is to it as its novelty is to the mean of the slices so far.
        """
        self._seen, self._novelty = self._seen + 1, self._novelty + novelty
        later = self._slices_left - 1
        even = self.left / self._slices_left
        ratio = novelty * self._seen / self._novelty if self._novelty > 0 else 1.0
        wanted = even * (1 + ratio) / 2
        most = min(self._whole, self.left - later * self._least)
        least = max(self._least, self.left - later * self._whole) if self._exact else self._least
        if not self._exact:
            spare = self.left - self._least * self._slices_left
            wanted = min(max(wanted, even, spare * _SPARE_SHARE), new)
        count = min(max(round(wanted), least), most)
        self.left, self._slices_left = self.left - count, later
        return count


@dataclass(slots=True)
class TokenPruner:
    """Selects the tokens of a video's slices, which have `slice_tokens` each; at most `tokens` in all.

    Compared are the first `hidden` values of a row. `dropped_new` counts tokens that did not repeat, and were dropped
    since the budget was used up.
    """

    slices: int
    slice_tokens: int
    tokens: int
    hidden: int
    drop_repeats: bool
    dropped_new: int = 0
    _budget: TokenBudget = field(init=False)
    _last_kept: Tensor | None = field(init=False, default=None)  # (slice_tokens, hidden)

    def __post_init__(self) -> None:
        later = self.tokens - self.slice_tokens
        self._budget = TokenBudget(later, self.slices - 1, self.slice_tokens, exact=not self.drop_repeats)

    @property
    def kept(self) -> int:
        """The tokens that were kept so far, if the first slice was there."""
        return self.tokens - self._budget.left

    @no_grad_scope()
    def prune(self, group: EncodedGroup) -> EncodedGroup:
        """Return the next slices with their kept tokens; places are indices in a slice, ascending, on the host."""
        embeddings = group.embeddings
        slices = torch.split(embeddings, self.slice_tokens)
        kept = tuple(self._next_slice(rows[:, : self.hidden]) for rows in slices)
        rows = torch.cat([places + number * self.slice_tokens for number, places in enumerate(kept)])
        if len(rows) < len(embeddings):
            embeddings = embeddings[to_device(rows, embeddings.device)]
        return replace(group, embeddings=embeddings, kept=kept)

    def _next_slice(self, features: Tensor) -> Tensor:
        if self._last_kept is None:
            self._last_kept = features.clone()
            return torch.arange(self.slice_tokens)
        mean = features.mean(dim=0, dtype=torch.float32).to(features.dtype).expand_as(features)
        both = [cosine_similarities(features, other) for other in (self._last_kept, mean)]
        cosines = on_host(torch.cat(both))  # one transfer
        similarities, typical = cosines[: self.slice_tokens], cosines[self.slice_tokens :]
        new = sum(one < REPEAT_SIMILARITY for one in similarities)
        count = self._budget.take(sum(max(1 - one, 0.0) for one in similarities), new)
        if self.drop_repeats:
            self.dropped_new += max(new - count, 0)
        kept = torch.tensor(sorted(_least_redundant(similarities, typical)[:count]))
        places = to_device(kept, features.device)
        self._last_kept[places] = features[places]
        return kept


def _least_redundant(similarities: list[float], typical: list[float]) -> list[int]:
    """Return the places of a slice: those that do not repeat first, then by the larger cosine of the two, ascending.

    `similarities` are with the last kept token at the place, `typical` with the mean of the slice.
    """

    def redundancy(place: int) -> tuple[bool, float]:
        similar = similarities[place]
        return similar >= REPEAT_SIMILARITY, max(similar, typical[place])

    return sorted(range(len(similarities)), key=redundancy)


def cosine_similarities(features: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of each row with the other's row, in float32; -1 where it is not a number.

    One tensor of the rows' size is made: products of rows in their own precision, of which one is a unit vector, so
    that no float16 product overflows.
    """
    lengths = vector_norm(features, dim=-1, dtype=torch.float32)
    other_lengths = vector_norm(others, dim=-1, dtype=torch.float32)
    divisors = other_lengths.to(others.dtype)
    products = (others / divisors[:, None]).mul_(features).sum(-1, dtype=torch.float32)
    cosines: Tensor = products * divisors.float() / (lengths * other_lengths)
    return cosines.nan_to_num(nan=-1.0)


def on_host(numbers: Tensor) -> list[float]:
    """Return numbers (n,) on the host: which tokens or slices are kept depends on them."""
    values: list[float] = numbers.tolist()
    return values


def make_pruner(plan: Plan, spec: ModelSpec) -> TokenPruner:
    """Return the pruner of a plan that drops tokens."""
    run_config = plan.run_config
    each = spec.slice_tokens(run_config.height, run_config.width)
    slices = spec.slices(len(plan.indices))
    return TokenPruner(slices, each, plan.visual_tokens, spec.hidden, run_config.drop_repeats)


def shortfall_note(pruner: TokenPruner) -> Iterator[str]:
    """Yield a note if the video repeats less than was planned for."""
    if pruner.dropped_new:
        yield (
            f"{pruner.dropped_new:,} visual tokens that do not repeat were dropped ({pruner.kept:,} of the planned "
            f"{pruner.tokens:,} were kept): the video changes more at once than was planned for; --prune off with "
            "fewer --frames keeps all"
        )
