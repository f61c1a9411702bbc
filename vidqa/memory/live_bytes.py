"""Bytes of living tensors, counted as they are made and freed: exact where no driver counts.

A dispatch mode that sees every operator's results. It slows each operator, so it runs only
when it is asked for. Knows storages; knows no phases.
"""

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidqa.memory.weights import rounded


class LiveBytes(TorchDispatchMode):
    """Counts living storages on one type of device, rounded to 512 bytes: `now`, and `peak` since a reset.

    Storages that exist before the mode is entered are counted by `count_model`.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._type = device_type
        self._sizes: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result

    def count_model(self, model: nn.Module) -> None:
        """Count a model's parameters and buffers, which were made before."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.count(tensor)

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now until its end, once, if it lies on the watched device."""
        if tensor.device.type != self._type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size = rounded(storage.nbytes())
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def reset(self) -> None:
        """Forget the peak."""
        self.peak = self.now
