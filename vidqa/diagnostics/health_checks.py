"""Health checks of `vidqa doctor`: one function per subject, each yielding `Check` results.

They report and change nothing. An exception inside a check is a failed check, never a traceback.
"""

import importlib.metadata
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidqa.devices import nvml
from vidqa.devices.device import find_device, list_devices
from vidqa.devices.gpu_catalog import OLDEST_FOR_TRITON
from vidqa.devices.host import THIS_MACHINE, Machine, usable_cores
from vidqa.errors import UsageError, VidqaError
from vidqa.models.checkpoint import suggested_model
from vidqa.models.hub import cache_folder, cached_models
from vidqa.models.registry import AUTO, Checkpoint, find_checkpoints
from vidqa.planner import calibration
from vidqa.types import Device
from vidqa.utils.units import format_bytes

if TYPE_CHECKING:
    from vidqa.models.attention.selector import HeadLayout

Status = Literal["ok", "bad", "absent"]
# FFmpeg 8.1 brought libavcodec 62.28; 8.0.1 and before carry CVE-2026-40962.
_SAFE_AVCODEC = (62, 28)
# Compilers that torch calls: C++ for code on a CPU, C for Triton's launchers. The first is an environment variable.
_COMPILERS = {"cpu": ("CXX", "g++", "clang++", "c++", "cl"), "cuda": ("CC", "gcc", "clang", "cc", "cl")}
_DEEP = "--deep tries it (some seconds)."
_MAX_EXCESS_PERCENT = 3  # of measured over planned peaks; above it a report is worth it


@dataclass(frozen=True, slots=True)
class Check:
    """One result: `ok`, `bad` (with a remedy), or `absent` (missing and not required).

    `needed` is true if no question can be answered without it.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """What to check: a model (None: the default), a device, whether to compile flex attention, and the machine.

    `deep` runs what takes seconds: loading bitsandbytes, and Triton's kernels.
    """

    model: str | None
    device: str
    flex: bool
    machine: Machine = THIS_MACHINE
    deep: bool = False

    def find_device(self) -> Device:
        """Return the device; raises UsageError if there is no such device."""
        return find_device(self.device, self.machine)

    def device_or_none(self) -> Device | None:
        """Return the device, or None if there is no such device."""
        try:
            return self.find_device()
        except UsageError:
            return None


CheckFunction = Callable[[Subject], Iterator[Check]]


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield all results as they come; importing torch and probing kernels take seconds."""
    for name, check in _CHECKS.items():
        yield from _guarded(name, check, subject)


def passed(checks: list[Check]) -> bool:
    """Return whether a question can be answered."""
    return not any(check.needed and check.status == "bad" for check in checks)


def _guarded(name: str, check: CheckFunction, subject: Subject) -> Iterator[Check]:
    """Yield the results of a check; an exception is a result too."""
    try:
        yield from check(subject)
    except VidqaError as error:
        yield Check(name, "bad", error.what, error.remedy, name in _NEEDED)
    except Exception as error:  # a broken native library can raise anything
        what = f"{type(error).__name__}: {_first_line(error)}"
        yield Check(name, "bad", what, _REMEDIES.get(name, "Reinstall vidqa."), name in _NEEDED)


def _driver(subject: Subject) -> Iterator[Check]:
    try:
        found = nvml.driver(subject.machine)
    except UsageError as error:
        if subject.device.startswith("cuda"):
            raise
        yield Check("driver", "absent", error.what)
        return
    yield Check("driver", "ok", f"NVIDIA {found.version}, runs CUDA up to {found.cuda}")


def _torch(subject: Subject) -> Iterator[Check]:
    torch = import_module("torch")
    cuda = torch.version.cuda
    detail = f"{torch.__version__}, " + (f"built for CUDA {cuda}" if cuda else "built without CUDA")
    if subject.device in {"cpu", "mps"} or not _has_gpu(subject.machine):
        yield Check("torch", "ok", detail)
        return
    with warnings.catch_warnings(record=True) as warned:  # torch warns if the driver is too old
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        yield Check("torch", "ok", detail)
        return
    why = next((f" ({_first_line(warning.message)})" for warning in warned), "")
    remedy = "Update the NVIDIA driver." if cuda else "Install the CUDA build of torch."
    # `auto` skips a GPU only if torch is built without CUDA.
    needed = bool(cuda) or subject.device.startswith("cuda")
    yield Check("torch", "bad", f"{detail}: cannot use the GPU{why}", remedy, needed)


def _first_line(message: object) -> str:
    return (str(message).splitlines() or [""])[0]


def _has_gpu(machine: Machine) -> bool:
    return list_devices(machine)[0].kind == "cuda"


def _device(subject: Subject) -> Iterator[Check]:
    device = subject.find_device()
    capability = device.compute_capability
    facts = [
        f"{device.name}: {format_bytes(device.free_bytes)} free of {format_bytes(device.total_bytes)}",
        *([f"compute capability {capability[0]}.{capability[1]}"] if capability else []),
        *(["bf16"] if device.bf16 else []),
        *device.notes,
    ]
    yield Check("device", "ok", "; ".join(facts))
    yield _others(device)


def _others(device: Device) -> Check:
    name, own = "other processes", format_bytes(device.process_bytes)
    if device.other_bytes == 0:
        return Check(name, "absent", f"none seen; this process holds {own}")
    return Check(name, "ok", f"hold {format_bytes(device.other_bytes)}; this process {own}")


def _ffmpeg(subject: Subject) -> Iterator[Check]:
    av = import_module("av")  # for its version only
    libraries: Mapping[str, tuple[int, ...]] = av.library_versions
    shown = ("libavcodec", "libavformat", "libswscale")
    versions = ", ".join(f"{name} {'.'.join(map(str, libraries[name]))}" for name in shown)
    detail = f"FFmpeg {av.ffmpeg_version_info} in PyAV {av.__version__} ({versions})"
    if libraries["libavcodec"][:2] < _SAFE_AVCODEC:
        yield Check("ffmpeg", "bad", f"{detail}: a crafted video can take over the decoder (CVE-2026-40962)",
                    _REMEDIES["ffmpeg"])  # fmt: skip
        return
    yield Check("ffmpeg", "ok", detail)


def _bitsandbytes(subject: Subject) -> Iterator[Check]:
    name = "bitsandbytes"
    if importlib.util.find_spec(name) is None:
        yield Check(name, "absent", "not installed: no int8 and nf4 weights", _REMEDIES[name])
        return
    version = importlib.metadata.version(name)
    if not subject.deep:
        yield _native_library(version, "cuda" if _kind(subject) == "cuda" else "cpu")
        return
    # Importing it warns about optional kernels on stderr.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    library = import_module("bitsandbytes.cextension").lib
    if "ErrorHandler" in type(library).__name__:  # its substitute for a library that did not load
        yield Check(name, "bad", f"{version}: its native library does not load", _REMEDIES[name])
    elif _kind(subject) == "cuda" and not library.compiled_with_cuda:
        yield Check(name, "bad", f"{version}: its native library is built for CPUs", _REMEDIES[name])
    else:
        yield Check(name, "ok", f"{version}, native library loaded: int8 and nf4 weights")


def _native_library(version: str, kind: str) -> Check:
    """Return whether bitsandbytes has a library for a kind of device; it is not loaded."""
    name, found = "bitsandbytes", importlib.util.find_spec("bitsandbytes")
    folders = found.submodule_search_locations if found and found.submodule_search_locations else []
    if any(path for folder in folders for path in Path(folder).glob(f"libbitsandbytes_{kind}*")):
        return Check(name, "ok", f"{version} with a library for {kind}, not loaded: int8 and nf4 weights", _DEEP)
    return Check(name, "bad", f"{version}: it has no native library for {kind}", _REMEDIES[name])


def _kind(subject: Subject) -> str:
    device = subject.device_or_none()
    return device.kind if device else "cpu"


def _compiler(subject: Subject) -> Iterator[Check]:
    variable, *usual = _COMPILERS["cuda" if _kind(subject) == "cuda" else "cpu"]
    names = (subject.machine.environment.get(variable, ""), *usual)
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        yield Check("compiler", "absent", "none found: --attn flex cannot be built", "Install g++ or clang.")
    else:
        yield Check("compiler", "ok", found)


def _triton(subject: Subject) -> Iterator[Check]:
    device = subject.device_or_none()
    capability = device.compute_capability if device else None
    if capability is None:
        yield Check("triton", "absent", "used on NVIDIA GPUs only")
    elif importlib.util.find_spec("triton") is None:
        yield Check("triton", "absent", "not installed: --attn flex cannot be built", "Install triton.")
    elif capability < OLDEST_FOR_TRITON:
        found, least = (".".join(map(str, version)) for version in (capability, OLDEST_FOR_TRITON))
        detail = f"needs compute capability {least}, and this GPU has {found}: --attn flex cannot be built"
        yield Check("triton", "absent", detail)
    else:
        yield Check("triton", "ok", importlib.metadata.version("triton"))


def _checkpoint(subject: Subject) -> Checkpoint:
    """Return the named model, else the first cached one, else the smallest released; its weights are not needed."""
    return find_checkpoints(subject.model or AUTO, local=False)[0]


def _attention(subject: Subject) -> Iterator[Check]:
    from vidqa.models.attention.selector import HeadLayout, select_kernel
    from vidqa.models.loader import DTYPES
    from vidqa.planner.placement import compute_dtype

    device, spec = subject.find_device(), _checkpoint(subject).spec
    layout = HeadLayout.of(spec)
    where = device.torch_name
    dtype = DTYPES[compute_dtype(device, spec)]
    *missed, chosen = select_kernel(layout, where, dtype, timed=True)
    heads = f"{layout.heads}/{layout.kv_heads} heads of {layout.head_dim}, {str(dtype).removeprefix('torch.')}"
    exact = f"within {chosen.difference:.0e} of float32, {1e3 * chosen.chunk_seconds:.1f} ms for 128 tokens after 896"
    yield Check("attention", "ok", f"vidqa runs {chosen.name}: {heads}; {exact}")
    for kernel in missed:
        yield Check(f"attention: {kernel.name}", "absent", kernel.reason)
    yield _flex(subject, layout, where, dtype)


def _flex(subject: Subject, layout: "HeadLayout", where: str, dtype: Any) -> Check:
    from vidqa.models.attention.selector import probe_kernel

    name = "attention: flex"
    if not subject.flex:
        return Check(name, "absent", "not tried", "Add --flex to compile it (half a minute).")
    kernel = probe_kernel("flex", layout, where, dtype)
    if kernel.runs:
        return Check(name, "ok", f"compiles and runs, {1e3 * kernel.chunk_seconds:.1f} ms: --attn flex can be used")
    return Check(name, "bad", kernel.reason, "Stay with --attn auto, the default.")


def _decode_step(subject: Subject) -> Iterator[Check]:
    from vidqa.devices.torch_device import torch_device
    from vidqa.engine.fused_decoder_selection import why_not_fused
    from vidqa.models.loader import DTYPES
    from vidqa.planner.placement import compute_dtype

    device, name = subject.find_device(), "decode step"
    if device.kind == "cuda" and not subject.deep:
        yield Check(name, "absent", "not tried", _DEEP)
        return
    spec = _checkpoint(subject).spec
    dtype = DTYPES[compute_dtype(device, spec)]
    if why := why_not_fused(spec, torch_device(device.torch_name), dtype):
        yield Check(name, "absent", f"plain layers: {why}")
    else:
        yield Check(name, "ok", "Triton's kernels run and agree with the plain layers")


def _model(subject: Subject) -> Iterator[Check]:
    if subject.model is None:
        return
    checkpoint = find_checkpoints(subject.model, local=True)[0]  # raises if a file is missing
    folder = checkpoint.local_folder()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    yield Check("model", "ok", f"{checkpoint.name}: {format_bytes(size)} of weights in {folder}")


def _cache(subject: Subject) -> Iterator[Check]:
    models, folder = cached_models(), cache_folder()
    size = format_bytes(sum(model.size_bytes for model in models))
    names = ", ".join(model.repository for model in models if model.runnable)
    if names:
        yield Check("model cache", "ok", f"{names}; {len(models)} model(s) of known families, {size} in {folder}")
        return
    remedy = f"Fetch one with `vidqa pull {suggested_model()}`, or use --model demo (coloured shapes only)."
    yield Check("model cache", "absent", f"no model that can run in {folder}", remedy)


def _predictions(subject: Subject) -> Iterator[Check]:
    """Compare planned with measured memory of past runs."""
    summary = calibration.summary()
    if summary is None:
        yield Check("predictions", "absent", "no run has been measured yet")
        return
    runs, ratio = summary
    percent = (ratio - 1) * 100
    status: Status = "bad" if percent > _MAX_EXCESS_PERCENT else "ok"  # a lower peak is harmless
    remedy = "Raise --reserve a little, and report this with `vidqa doctor --json`." if status == "bad" else ""
    yield Check("predictions", status, f"measured peaks are {percent:+.1f} % of planned ones, {runs} run(s)", remedy)


def _speed(subject: Subject) -> Iterator[Check]:
    """Show the measured speed of the device."""
    device = subject.find_device()
    measured = calibration.stored_speed(calibration.device_key(device, usable_cores(subject.machine)), "").measured
    if measured:
        yield Check("speed", "ok", f"measured here: {calibration.describe_rates(measured)}")
    else:
        yield Check("speed", "absent", "estimated: the first question to a model on this device measures it")


_CHECKS: dict[str, CheckFunction] = {
    "driver": _driver,
    "torch": _torch,
    "device": _device,
    "ffmpeg": _ffmpeg,
    "bitsandbytes": _bitsandbytes,
    "compiler": _compiler,
    "triton": _triton,
    "attention": _attention,
    "decode step": _decode_step,
    "model": _model,
    "model cache": _cache,
    "predictions": _predictions,
    "speed": _speed,
}
_NEEDED = frozenset({"torch", "device", "ffmpeg", "attention", "model"})
_REMEDIES = {
    "torch": "Reinstall torch and torchvision together.",
    "ffmpeg": "Install a newer PyAV: pip install --upgrade 'av>=18.1'.",
    "bitsandbytes": "pip install --upgrade bitsandbytes, or use --weights bf16.",
}


def findings(checks: list[Check], device: Device | None) -> dict[str, Any]:
    """Return the documented object of `doctor --json`."""
    rows = [{"name": c.name, "status": c.status, "detail": c.detail, "remedy": c.remedy} for c in checks]
    return {"schema_version": 1, "checks": rows, "device": None if device is None else asdict(device)}
