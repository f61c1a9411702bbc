"""Tokens to characters, and logits to tokens."""

import pytest
import torch

from vidqa.engine.detokenizer import Detokenizer
from vidqa.engine.sampler import NOT_A_NUMBER, Sampler


class ByteTokenizer:
    """One token per byte: the hardest case for whole characters."""

    def decode(self, ids: list[int], **_: bool) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語のテキスト", "family 👨‍👩‍👧 end", "𝄞 and е́"])
def test_text_comes_in_whole_characters(text: str) -> None:
    stream = Detokenizer(ByteTokenizer())
    parts = [stream.push(byte) for byte in text.encode()] + [stream.flush()]
    assert "".join(parts) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts)


def test_a_character_that_never_ends_is_shown_as_broken() -> None:
    stream = Detokenizer(ByteTokenizer())
    assert "".join(stream.push(byte) for byte in b"ab\xe6\x97") == "ab"
    assert "\N{REPLACEMENT CHARACTER}" in stream.flush()


def chosen(sampler: Sampler, logits: torch.Tensor) -> int:
    return int(sampler.choose(logits[None], sampler.draw(1)))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert chosen(Sampler(0, 1, None), torch.tensor([0.1, 3.0, -1.0])) == 1


def test_a_seed_repeats_the_draws() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(1))
    first, second, other = (Sampler(1.0, 1.0, seed) for seed in (5, 5, 6))
    draws = [chosen(first, logits) for _ in range(50)]
    assert draws == [chosen(second, logits) for _ in range(50)]
    assert draws != [chosen(other, logits) for _ in range(50)]


def test_draws_follow_the_distribution() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(1.0, 1.0, 0)
    tokens = sampler.choose(torch.log(wanted).expand(20_000, 4), sampler.draw(20_000))
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    assert torch.allclose(shares, wanted, atol=0.012)


def test_top_p_keeps_the_smallest_set_that_holds_it() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    sampler = Sampler(1.0, 0.7, 0)
    assert {chosen(sampler, logits) for _ in range(400)} == {0, 1}
    narrow = Sampler(1.0, 1e-9, 0)
    assert {chosen(narrow, logits) for _ in range(50)} == {0}


def test_temperature_flattens_and_sharpens() -> None:
    logits = torch.tensor([1.0, 0.0])
    cold, hot = Sampler(0.1, 1.0, 0), Sampler(10.0, 1.0, 0)
    assert sum(chosen(cold, logits) for _ in range(300)) < 5
    assert 100 < sum(chosen(hot, logits) for _ in range(300)) < 200


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_choose_no_token(bad: float, temperature: float) -> None:
    sampler = Sampler(temperature, 1.0, 0)
    logits = torch.tensor([[0.1, 3.0, -1.0], [0.1, bad, -1.0]])
    tokens = sampler.choose(logits, sampler.draw(2)).tolist()
    assert tokens[0] != NOT_A_NUMBER and tokens[1] == NOT_A_NUMBER
