"""Logits to tokens, on the device that holds them. Temperature 0 is greedy. Knows rows of logits and nothing else."""

import torch
from torch import Tensor

NOT_A_NUMBER = -1  # stands for a token where the logits are not all finite

_COLDEST = 1e-5  # below, logits divided by it leave float32


class Sampler:
    """Chooses tokens by temperature and nucleus (top-p) sampling, repeatably from a seed."""

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self.temperature = temperature if temperature > _COLDEST else 0.0
        self.top_p = top_p
        self._generator = torch.Generator()  # on the host: the same draws on every device
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """The next uniform numbers (count,) in [0, 1), on the host."""
        return torch.rand(count, generator=self._generator)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Token ids (B,) from float32 logits (B, vocabulary) and uniform numbers (B,); NOT_A_NUMBER where they are not.

        Makes no copy to the host: the ids can be fed on before anybody has read them.
        """
        tokens = logits.argmax(-1) if self.temperature == 0 else self._drawn(logits, uniform)
        return torch.where(torch.isfinite(logits).all(-1), tokens, NOT_A_NUMBER)

    def _drawn(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Invert the cumulative distribution over the tokens, the likeliest first (Holtzman et al. 2020 for top-p)."""
        ordered, order = torch.softmax(logits / self.temperature, dim=-1).sort(dim=-1, descending=True)
        below = ordered.cumsum(-1)
        outside = below - ordered >= self.top_p  # the first token always stays
        kept = ordered.masked_fill(outside, 0.0).cumsum(-1)
        place = torch.searchsorted(kept, uniform[:, None] * kept[:, -1:], right=True)
        return order.gather(-1, place.clamp(max=logits.shape[-1] - 1))[:, 0]
