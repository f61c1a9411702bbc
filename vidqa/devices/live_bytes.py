"""Bytes of living tensors, counted as they are made and freed: exact where no driver counts.

A dispatch mode that sees every operator's results, in the thread that enters it. It costs about 5 µs an operator,
which is nothing for a matrix of a real model. What an operator takes inside itself it does not see. Knows storages;
knows no phases.
"""

import threading
import weakref
from collections import deque
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidqa.devices.allocator import rounded


class LiveBytes(TorchDispatchMode):
    """Counts living storages on one type of device, rounded to 512 bytes: `now`, and `peak` since a reset.

    Storages that exist before the mode is entered are counted by `count` and `count_model`, from any thread.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._type = device_type
        self._living: dict[int, tuple[int, Any]] = {}  # by storage: bytes, and the reference that tells its end
        self._ended: deque[int] = deque()  # a storage may end in any thread, also while the lock is held
        self._lock = threading.RLock()  # what the garbage collector runs meanwhile may make tensors too
        self._now = 0
        self.peak = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What torch compiles stays compiled: its results are counted, not what it takes inside."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(result, Tensor):
            self.count(result)
        elif result is not None:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.count(leaf)
        return result

    @property
    def now(self) -> int:
        """Bytes that live at this moment."""
        with self._lock:
            self._take_off()
            return self._now

    def count_model(self, model: nn.Module) -> None:
        """Count a model's parameters and buffers, which were made before."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.count(tensor)

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now until its end, once, if it lies on the watched device."""
        if tensor.device.type != self._type:
            return
        storage = tensor.untyped_storage()
        key, ended = storage._cdata, self._ended
        with self._lock:
            self._take_off()  # first: a new storage may have the address of one that has ended
            if key in self._living:
                return
            size = rounded(storage.nbytes())
            self._living[key] = size, weakref.ref(storage, lambda _: ended.append(key))
            self._now += size
            self.peak = max(self.peak, self._now)

    def count_bytes(self, size: int) -> None:
        """Count bytes that stay as long as this counter does."""
        with self._lock:
            self._now += size
            self.peak = max(self.peak, self._now)

    def _take_off(self) -> None:
        while self._ended:
            self._now -= self._living.pop(self._ended.popleft())[0]

    def reset(self) -> None:
        """Forget the peak."""
        self.peak = self.now
