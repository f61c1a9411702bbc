"""Which tokens of a slice are kept, with plain numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vidqa.engine.token_pruning import TokenBudget, TokenPruner, cosine_similarities, shortfall_note
from vidqa.engine.vision import EncodedGroup
from vidqa.planner.activation_memory import least_slice_tokens

HIDDEN = 8


def group(rows: Tensor, slices: int) -> EncodedGroup:
    return EncodedGroup(rows, slices, tuple(float(number) for number in range(2 * slices)))


def pruner(slices: int, slice_tokens: int, tokens: int, *, drop_repeats: bool = False) -> TokenPruner:
    return TokenPruner(slices, slice_tokens, tokens, HIDDEN, drop_repeats)


def directions(*numbers: int) -> Tensor:
    """Rows (tokens, HIDDEN), each a unit vector: equal numbers are equal rows, others at a right angle."""
    return torch.eye(HIDDEN)[list(numbers)]


def places(one: TokenPruner, *slices: Tensor) -> list[list[int]]:
    return [kept.tolist() for kept in one.prune(group(torch.cat(slices), len(slices))).kept]


NOVELTIES = st.lists(st.floats(0, 100), min_size=1, max_size=40)


@given(NOVELTIES, st.integers(1, 200), st.floats(0, 1))
def test_an_exact_budget_is_used_up_to_the_last_token(novelties: list[float], whole: int, share: float) -> None:
    slices, least = len(novelties), least_slice_tokens(whole)
    tokens = max(int(share * slices * whole), slices * least)
    budget = TokenBudget(tokens, slices, whole, exact=True)
    taken = [budget.take(novelty, whole) for novelty in novelties]
    assert sum(taken) == tokens
    assert least <= min(taken) and max(taken) <= whole


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 64)), min_size=1, max_size=40), st.floats(0, 1))
def test_a_budget_for_new_tokens_is_never_exceeded(slices: list[tuple[float, int]], share: float) -> None:
    tokens = max(int(share * len(slices) * 64), len(slices) * 4)
    budget = TokenBudget(tokens, len(slices), 64, exact=False)
    taken = [budget.take(novelty, new) for novelty, new in slices]
    assert sum(taken) <= tokens
    assert all(4 <= count <= max(new, 4) for count, (_, new) in zip(taken, slices, strict=True))


def test_quiet_slices_save_tokens_for_a_busy_one() -> None:
    budget = TokenBudget(100, 10, 40, exact=True)
    assert [budget.take(novelty, 40) for novelty in (1, 1, 1)] == [10, 10, 10]
    quiet, busy = budget.take(0.1, 40), budget.take(8, 40)
    assert quiet == 6 and busy > 20


def test_early_busy_slices_of_a_quiet_video_keep_most_of_what_is_new() -> None:
    budget = TokenBudget(80, 20, 16, exact=False)  # 4 for each slice
    assert [budget.take(8, 16), budget.take(8, 16), *(budget.take(0, 0) for _ in range(18))] == [15, 12, *[1] * 18]
    late = TokenBudget(80, 20, 16, exact=False)
    assert [late.take(0, 0) for _ in range(18)] == [1] * 18 and [late.take(8, 16), late.take(8, 16)] == [16, 16]


def test_new_tokens_of_a_busy_slice_take_what_quiet_ones_left() -> None:
    budget = TokenBudget(60, 4, 32, exact=False)
    assert [budget.take(0, 0), budget.take(0, 1), budget.take(9, 32), budget.take(9, 30)] == [2, 2, 32, 24]


def test_only_what_is_new_at_its_place_is_kept() -> None:
    still = directions(0, 1, 2, 3)
    moved = directions(0, 1, 5, 3)
    one = pruner(5, 4, 20, drop_repeats=True)
    kept = places(one, still, moved, moved, directions(0, 1, 5, 6), still)
    assert kept == [[0, 1, 2, 3], [2], [0], [3], [2, 3]]  # at least one of four
    assert one.dropped_new == 0 and not list(shortfall_note(one))


def test_tokens_are_compared_with_the_last_kept_and_not_with_the_one_before() -> None:
    """A slow turn, of which each step repeats the one before."""
    angles = torch.linspace(0, 1.4, 15)
    slow = torch.zeros(15, 16, HIDDEN)
    slow[:, :, 0] = 1
    slow[:, 3, 0], slow[:, 3, 1] = angles.cos(), angles.sin()
    slow[::2, 5], slow[1::2, 5] = directions(2), directions(3)  # takes the one token that every slice keeps
    steps = cosine_similarities(slow[1:, 3], slow[:-1, 3])
    assert steps.min() > 0.99
    kept = places(pruner(15, 16, 15 * 16, drop_repeats=True), *slow)
    assert [number for number in range(1, 15) if 3 in kept[number]] == [7, 14]  # a cosine of .8 is an angle of .64
    assert all(5 in one and len(one) <= 2 for one in kept[1:])


def test_a_share_is_kept_to_the_token_and_the_least_alike_go_first() -> None:
    generator = torch.Generator().manual_seed(1)
    slices = [torch.randn(16, HIDDEN, generator=generator) for _ in range(9)]
    kept = places(pruner(9, 16, 60), *slices)
    assert kept[0] == list(range(16)) and sum(map(len, kept)) == 60
    mean = slices[1].mean(dim=0).expand_as(slices[1])
    similar = torch.maximum(cosine_similarities(slices[1], slices[0]), cosine_similarities(slices[1], mean))
    assert similar[kept[1]].max() <= min(similar[place] for place in range(16) if place not in kept[1])


def test_when_the_camera_moves_tokens_unlike_their_slice_are_kept() -> None:
    """Every token is new at its place. Two of each slice differ from the others, though more like those before."""
    slices = []
    for number, shown in enumerate((0, 2, 4)):
        backdrop, one = torch.eye(HIDDEN)[number], torch.eye(HIDDEN)[7]
        slices.append(backdrop.repeat(8, 1))
        slices[-1][shown : shown + 2] = one + 0.3 * torch.eye(HIDDEN)[max(number - 1, 0)]
    assert cosine_similarities(slices[1], slices[0])[2:4].min() > 0.2
    assert places(pruner(3, 8, 12), *slices) == [list(range(8)), [2, 3], [4, 5]]


@pytest.mark.parametrize("tokens", [15, 16])
@pytest.mark.parametrize("drop_repeats", [False, True])
def test_new_tokens_like_their_slice_are_kept_before_one_that_repeats(tokens: int, drop_repeats: bool) -> None:
    before, after = directions(0, 0, 0, 0, 0, 0, 0, 1), directions(2, 2, 2, 2, 2, 2, 2, 1)
    after[7] = 0.85 * after[7] + (1 - 0.85**2) ** 0.5 * directions(3)[0]  # repeats, and is the least like the mean
    assert cosine_similarities(after[:1], after.mean(dim=0, keepdim=True)) > 0.9
    kept = places(pruner(2, 8, tokens, drop_repeats=drop_repeats), before, after)[1]
    assert kept == (list(range(8)) if tokens == 16 and not drop_repeats else list(range(7)))


@pytest.mark.parametrize("drop_repeats", [False, True])
@pytest.mark.parametrize("sizes", [(1,) * 8, (3, 3, 2), (8,), (2, 5, 1)])
def test_groups_of_any_size_give_the_same_tokens(sizes: tuple[int, ...], drop_repeats: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(12, HIDDEN, generator=generator)
    rows = torch.cat([base + 0.1 * number * torch.randn(12, HIDDEN, generator=generator) for number in range(8)])
    whole = pruner(8, 12, 50, drop_repeats=drop_repeats).prune(group(rows, 8))
    one, parts = pruner(8, 12, 50, drop_repeats=drop_repeats), list[EncodedGroup]()
    for size, part in zip(sizes, torch.split(rows, [12 * size for size in sizes]), strict=True):
        parts.append(one.prune(group(part, size)))
    assert torch.equal(torch.cat([part.embeddings for part in parts]), whole.embeddings)
    assert [kept.tolist() for part in parts for kept in part.kept] == [kept.tolist() for kept in whole.kept]
    assert 12 < len(whole.embeddings) <= 50


def test_further_features_are_dropped_with_their_token_and_not_compared() -> None:
    rows = torch.cat((directions(0, 1, 0, 2), torch.arange(4 * HIDDEN).view(4, HIDDEN).float()), dim=1)
    pruned = pruner(2, 2, 4, drop_repeats=True).prune(group(rows, 2))
    assert [kept.tolist() for kept in pruned.kept] == [[0, 1], [1]]
    assert torch.equal(pruned.embeddings, rows[[0, 1, 3]])


def test_what_is_not_a_number_counts_as_new() -> None:
    second = directions(0, 1, 2, 3)
    second[2] = torch.nan
    assert places(pruner(2, 4, 8, drop_repeats=True), directions(0, 1, 2, 3), second)[1] == [2]


def test_a_budget_below_what_is_new_is_said_with_its_numbers() -> None:
    one = pruner(3, 4, 8, drop_repeats=True)
    kept = places(one, directions(0, 1, 2, 3), directions(4, 5, 6, 7), directions(0, 1, 2, 3))
    assert list(map(len, kept)) == [4, 2, 2]
    (note,) = shortfall_note(one)
    assert note.startswith("2 visual tokens that do not repeat were dropped (8 of the planned 8 were kept)")


def test_a_single_slice_is_whole() -> None:
    assert places(pruner(1, 4, 4), directions(0, 1, 2, 3)) == [[0, 1, 2, 3]]
