"""Which GPUs share the work: `all`, their numbers or their UUIDs, each as the UUID that isolates a process on it."""

from vidqa.devices.host import THIS_MACHINE, Machine
from vidqa.devices.nvml import cuda_uuids
from vidqa.errors import UsageError


def find_gpus(choice: str, machine: Machine = THIS_MACHINE) -> tuple[str, ...]:
    """UUIDs of `all`, of `0,1` (as CUDA counts what it shows) or of `GPU-8f2a…,MIG-…` (their beginnings will do).

    All means every MIG instance too. Raises UsageError where there is no NVIDIA GPU, or not this one.
    """
    shown = cuda_uuids(machine)
    if not all(uuid.startswith(("GPU-", "MIG-")) for uuid in shown):  # a made-up one would hide the GPU in silence
        raise UsageError("The NVIDIA driver does not tell the UUIDs of its GPUs.", "Leave out --gpus.")
    if not shown:
        raise UsageError("The NVIDIA driver shows no usable GPU.", "Change CUDA_VISIBLE_DEVICES, or leave out --gpus.")
    if choice == "all":
        return shown
    chosen = tuple(_one(entry.strip(), shown) for entry in choice.split(","))
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"--gpus {choice} names a GPU twice.", "Name each once.")
    return chosen


def _one(entry: str, shown: tuple[str, ...]) -> str:
    if entry.isdecimal() and entry.isascii() and int(entry) < len(shown):
        return shown[int(entry)]
    found = [uuid for uuid in shown if entry.startswith(("GPU-", "MIG-")) and uuid.startswith(entry)]
    if len(found) != 1:
        problem = "is the beginning of several" if found else "is none"
        raise UsageError(
            f"--gpus: {entry!r} {problem} of the {len(shown)} GPU(s) that CUDA shows.",
            f"Use all, numbers from 0 to {len(shown) - 1}, or UUIDs as nvidia-smi -L prints them.",
        )
    return found[0]
