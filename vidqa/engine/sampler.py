"""Logits to a token, or an error where they are no numbers. Temperature 0 is greedy. Knows one row of logits."""

import math

import torch
from torch import Tensor

from vidqa.errors import NotFinite


class Sampler:
    """Chooses tokens by temperature and nucleus (top-p) sampling, repeatably from a seed."""

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator()  # on the host: the same draws on every device
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """Pick a token id from float32 logits (vocabulary,); raises NotFinite."""
        if self._temperature == 0:
            return read_token(likeliest(logits))
        logits = logits.cpu()
        check_finite(float(logits.max()))
        probabilities = torch.softmax(logits / self._temperature, dim=-1)
        kept = self._nucleus(probabilities)
        return int(torch.multinomial(kept, 1, generator=self._generator))

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """Zero all but the smallest set of tokens that holds `top_p` (Holtzman et al. 2020)."""
        if self._top_p >= 1:
            return probabilities
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= self._top_p  # the first token always stays
        return probabilities.index_fill(0, order[outside], 0.0)


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token and its logit (2,), float32 on the logits' device, for `read_token`: no host sync.

    The largest of (vocabulary,) is NaN if any is, so the reduction that finds the token also
    checks them all; float32 holds token ids exactly up to 2^24.
    """
    largest, token = logits.max(dim=-1)
    return torch.stack((token.to(torch.float32), largest.to(torch.float32)))


def read_token(chosen: Tensor) -> int:
    """The token id that `likeliest` found, read with its check in one transfer; raises NotFinite."""
    token, largest = chosen.tolist()
    check_finite(largest)
    return int(token)


def check_finite(largest_logit: float) -> None:
    """Raise NotFinite where the largest logit is NaN or infinite: token 0, "!", would be all that is said."""
    if not math.isfinite(largest_logit):
        raise NotFinite(
            f"The model's logits are not finite (the largest is {largest_logit}): the answer would be noise.",
            "Use --weights bf16 or fp32; if it stays, fetch the model again with `vidqa pull`.",
        )
