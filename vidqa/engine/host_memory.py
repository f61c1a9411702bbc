"""Host memory that a GPU copies from and to without a detour: page-locked where there is a GPU, plain elsewhere."""

import weakref

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
    storage, runtime = tensor.untyped_storage(), torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = storage.data_ptr()
    if int(runtime.cudaHostRegister(address, storage.nbytes(), 0)) != 0:
        return False
    weakref.finalize(storage, runtime.cudaHostUnregister, address).atexit = False  # the process's end does it
    return True
