"""torch's devices: by name, whether an error means that memory ran out, and giving memory back."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vidqa.errors import UsageError

_MEMORY_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "out of memory",  # CUDA's and Metal's own words
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def torch_device(name: str) -> torch.device:
    """The device that `cpu`, `cuda:1` or `mps` names; raises UsageError where torch cannot use it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"The device {name!r} cannot be used: {first_line(error)}.", "Use --device auto or cpu."
        ) from error
    return device


def release_cached_memory() -> None:
    """Collect what a failed attempt left, and give the allocator's unused blocks back to the device."""
    gc.unfreeze()  # a face may have set aside what is about to go
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_SIGNS)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type."""
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
