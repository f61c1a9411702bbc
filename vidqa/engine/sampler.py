"""Logits to a token. Temperature 0 is greedy. Knows one row of logits and nothing else."""

import torch
from torch import Tensor


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
        """Pick a token id from float32 logits (vocabulary,)."""
        if self._temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.cpu() / self._temperature, dim=-1)
        kept = self._nucleus(probabilities)
        return int(torch.multinomial(kept, 1, generator=self._generator))

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """Zero all but the smallest set of tokens that holds `top_p` (Holtzman et al. 2020)."""
        if self._top_p >= 1:
            return probabilities
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= self._top_p  # the first token always stays
        return probabilities.index_fill(0, order[outside], 0.0)
