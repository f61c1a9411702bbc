"""torch devices: look-up by name, out-of-memory errors, release of cached memory, page-locked host memory."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from vidqa.errors import UsageError

_MEMORY_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "out of memory",  # CUDA and Metal
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def torch_device(name: str) -> torch.device:
    """Return the device named `cpu`, `cuda:1` or `mps`; raises UsageError where torch cannot use it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"The device {name!r} cannot be used: {first_line(error)}.", "Use --device auto or cpu."
        ) from error
    return device


def release_cached_memory() -> None:
    """Collect garbage and return the allocator's unused blocks to the device."""
    gc.unfreeze()  # the terminal app freezes objects after loading a model
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_SIGNS)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new parameters in a precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def page_locked(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised host tensor for copies to or from `device`, page-locked where that is CUDA.

    torch's host allocator rounds its size up to a power of two: use `register` for large tensors that stay.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda" and torch.cuda.is_available())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a small host tensor on `device`. On CUDA it is copied from page-locked memory, without a wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def register(tensor: Tensor, device: torch.device) -> bool:
    """Page-lock a host tensor in place for its lifetime; return whether that was done.

    It takes no memory beyond the tensor's. Where the driver refuses (too much is locked already), copies go through
    the driver's buffer.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    storage = tensor.untyped_storage()
    address = storage.data_ptr()
    with torch.cuda.device(device):
        if int(torch.cuda.cudart().cudaHostRegister(address, storage.nbytes(), 0)) != 0:  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # the refusal stays CUDA's last error, which the next operation would raise
                torch.empty(1, device=device).zero_()
            return False
    weakref.finalize(storage, _unregister, device, address).atexit = False  # the end of the process unlocks them
    return True


def _unregister(device: torch.device, address: int) -> None:
    """Unlock pages after all copies to or from them have ended."""
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
