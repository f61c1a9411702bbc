"""Logits to token ids by temperature and nucleus sampling, on the logits' device."""

import torch
from torch import Tensor

NOT_A_NUMBER = -1  # instead of a token where logits are not all finite

_LOWEST_TEMPERATURE = 1e-5  # below, logits divided by it leave float32


class Sampler:
    """Chooses tokens, repeatably from a seed; temperature 0 is greedy."""

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self.temperature = temperature if temperature > _LOWEST_TEMPERATURE else 0.0
        self.top_p = top_p
        self._generator = torch.Generator()  # on the host: the same draws on every device
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """Return the next uniform numbers (count,) in [0, 1), on the host."""
        return torch.rand(count, generator=self._generator)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return ids (B,) for float32 logits (B, vocabulary) and uniform numbers (B,); NOT_A_NUMBER for bad rows.

        Copies nothing to the host, so the next step can be queued before the ids are read.
        """
        tokens = logits.argmax(-1) if self.temperature == 0 else self._sample(logits, uniform)
        return torch.where(torch.isfinite(logits).all(-1), tokens, NOT_A_NUMBER)

    def _sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Invert the cumulative distribution over the tokens, the likeliest first (Holtzman et al. 2020 for top-p)."""
        probabilities, order = torch.softmax(logits / self.temperature, dim=-1).sort(dim=-1, descending=True)
        outside = probabilities.cumsum(-1) - probabilities >= self.top_p  # the first token always stays
        nucleus = probabilities.masked_fill(outside, 0.0).cumsum(-1)
        place = torch.searchsorted(nucleus, uniform[:, None] * nucleus[:, -1:], right=True)
        return order.gather(-1, place.clamp(max=logits.shape[-1] - 1))[:, 0]
