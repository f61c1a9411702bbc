"""Host memory that a GPU copies from and to without a detour: page-locked where there is a GPU, plain elsewhere."""

import weakref
from contextlib import suppress

import torch
from torch import Tensor


def page_locked(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised host tensor for copies to or from `device`; page-locked for CUDA.

    Its size is rounded up to a power of two by torch's host allocator: for buffers, not for what is large and stays.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda" and torch.cuda.is_available())


def register(tensor: Tensor, device: torch.device) -> bool:
    """Page-lock a host tensor where it is, for its lifetime; whether that was done.

    Unlike `page_locked` it takes no byte more than the tensor has. Where the driver refuses (too much is locked
    already), copies go on, through the driver's own buffer.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    storage = tensor.untyped_storage()
    address = storage.data_ptr()
    with torch.cuda.device(device):
        if int(torch.cuda.cudart().cudaHostRegister(address, storage.nbytes(), 0)) != 0:  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # the refusal stays CUDA's last error, and would end the next operation
                torch.empty(1, device=device).zero_()
            return False
    weakref.finalize(storage, _unregister, device, address).atexit = False  # the process's end does it
    return True


def _unregister(device: torch.device, address: int) -> None:
    """Unlock pages, once no copy to or from them is under way."""
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
