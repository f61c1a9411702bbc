"""Is everything here that an answer needs? One small function per question, each giving Checks.

Looks and reports: prints nothing, mends nothing. A question that fails to be answered is itself
a finding, never a traceback.
"""

import importlib.metadata
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from vidqa.devices import nvml
from vidqa.devices.device import find_device, list_devices
from vidqa.devices.gpu_catalog import OLDEST_FOR_TRITON
from vidqa.devices.host import THIS_MACHINE, Machine
from vidqa.errors import UsageError, VidqaError
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
# What torch's compiler calls: C++ for code on a processor, C for Triton's launchers. The first is a variable.
_COMPILERS = {"cpu": ("CXX", "g++", "clang++", "c++", "cl"), "cuda": ("CC", "gcc", "clang", "cc", "cl")}
_MANY_PERCENT = 3  # predictions further off than this are worth a report


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `ok`, `bad` (with its remedy), or `absent`: not there and not needed.

    `needed` is true where an answer is impossible without it.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at: a model's name (None: the one that would answer), a device, flex or not, and where."""

    model: str | None
    device: str
    flex: bool
    machine: Machine = THIS_MACHINE

    def find_device(self) -> Device:
        """The device; raises UsageError where there is none such."""
        return find_device(self.device, self.machine)

    def look_at_device(self) -> Device | None:
        """The device, or None where there is none such."""
        try:
            return self.find_device()
        except UsageError:
            return None


Question = Callable[[Subject], Iterator[Check]]


def run_checks(subject: Subject) -> Iterator[Check]:
    """All findings, one after the other as they are made; importing torch and probing take seconds."""
    for name, question in _QUESTIONS.items():
        yield from _guarded(name, question, subject)


def passed(checks: list[Check]) -> bool:
    """Can an answer be given?"""
    return not any(check.needed and check.status == "bad" for check in checks)


def _guarded(name: str, question: Question, subject: Subject) -> Iterator[Check]:
    """A question's findings; whatever it raises is a finding too."""
    try:
        yield from question(subject)
    except VidqaError as error:
        yield Check(name, "bad", error.what, error.remedy, name in _NEEDED)
    except Exception as error:  # a broken native library can raise anything
        what = f"{type(error).__name__}: {_first_line(error)}"
        yield Check(name, "bad", what, _REMEDIES.get(name, "Install vidqa again."), name in _NEEDED)


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
    with warnings.catch_warnings(record=True) as said:  # it warns where the driver is too old
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        yield Check("torch", "ok", detail)
        return
    why = next((f" ({_first_line(warning.message)})" for warning in said), "")
    remedy = "Update the NVIDIA driver." if cuda else "Install the CUDA build of torch."
    # `auto` passes a GPU over only where torch has no CUDA at all.
    needed = bool(cuda) or subject.device.startswith("cuda")
    yield Check("torch", "bad", f"{detail}: cannot use the GPU that is there{why}", remedy, needed)


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
    av = import_module("av")  # asked for its version only: pictures are vidqa.video's business
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
    # It warns on stderr about optional kernels when it is imported.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    library = import_module("bitsandbytes.cextension").lib
    version = importlib.metadata.version(name)
    if "ErrorHandler" in type(library).__name__:  # its stand-in for a library that did not load
        yield Check(name, "bad", f"{version}: its native library does not load", _REMEDIES[name])
    elif _kind(subject) == "cuda" and not library.compiled_with_cuda:
        yield Check(name, "bad", f"{version}: its native library is the one for processors", _REMEDIES[name])
    else:
        yield Check(name, "ok", f"{version}, native library loaded: int8 and nf4 weights")


def _kind(subject: Subject) -> str:
    device = subject.look_at_device()
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
    device = subject.look_at_device()
    capability = device.compute_capability if device else None
    if capability is None:
        yield Check("triton", "absent", "compiles attention for NVIDIA GPUs only")
    elif importlib.util.find_spec("triton") is None:
        yield Check("triton", "absent", "not installed: --attn flex cannot be built", "Install triton.")
    elif capability < OLDEST_FOR_TRITON:
        detail = f"does not support compute capability {capability[0]}.{capability[1]} any more: flex cannot be used"
        yield Check("triton", "absent", detail)
    else:
        yield Check("triton", "ok", importlib.metadata.version("triton"))


def _checkpoint(subject: Subject) -> Checkpoint:
    """The named model, else the first cached one, else Qwen2-VL's smallest: only its numbers are needed."""
    return find_checkpoints(subject.model or AUTO, local=False)[0]


def _attention(subject: Subject) -> Iterator[Check]:
    from vidqa.models.attention.selector import HeadLayout, device_dtype, select_kernel

    device, spec = subject.find_device(), _checkpoint(subject).spec
    layout = HeadLayout.of(spec)
    where = device.torch_name
    dtype = device_dtype(device.kind, device.bf16)
    *missed, chosen = select_kernel(layout, where, dtype, timed=True)
    heads = f"{layout.heads}/{layout.kv_heads} heads of {layout.head_dim}, {str(dtype).removeprefix('torch.')}"
    exact = f"within {chosen.difference:.0e} of float32, {1e3 * chosen.chunk_seconds:.1f} ms for 128 tokens after 896"
    yield Check("attention", "ok", f"vidqa runs {chosen.name}: {heads}; {exact}")
    for rung in missed:
        yield Check(f"attention: {rung.name}", "absent", rung.reason)
    yield _flex(subject, layout, where, dtype)


def _flex(subject: Subject, layout: "HeadLayout", where: str, dtype: Any) -> Check:
    from vidqa.models.attention.selector import probe_kernel

    name = "attention: flex"
    if not subject.flex:
        return Check(name, "absent", "not tried", "Add --flex to compile it, which takes half a minute.")
    rung = probe_kernel("flex", layout, where, dtype)
    if rung.runs:
        return Check(name, "ok", f"compiles and runs, {1e3 * rung.chunk_seconds:.1f} ms: --attn flex can be used")
    return Check(name, "bad", rung.reason, "Stay with --attn auto, the default.")


def _decode_step(subject: Subject) -> Iterator[Check]:
    from vidqa.devices.torch_device import torch_device
    from vidqa.engine.fused_decode import why_not_fused
    from vidqa.models.attention.selector import device_dtype

    device, name = subject.find_device(), "decode step"
    dtype = device_dtype(device.kind, device.bf16)
    if why := why_not_fused(_checkpoint(subject).spec, torch_device(device.torch_name), dtype):
        yield Check(name, "absent", f"plain layers: {why}")
    else:
        yield Check(name, "ok", "Triton's kernels run, and agree with the plain layers")


def _model(subject: Subject) -> Iterator[Check]:
    if subject.model is None:
        return
    checkpoint = find_checkpoints(subject.model, local=True)[0]  # with all that an answer needs of it
    folder = checkpoint.local_folder()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    yield Check("model", "ok", f"{checkpoint.name}: {format_bytes(size)} of weights in {folder}")


def _cache(subject: Subject) -> Iterator[Check]:
    models, folder = cached_models(), cache_folder()
    size = format_bytes(sum(model.size_bytes for model in models))
    names = ", ".join(model.repository for model in models if model.runnable)
    if names:
        yield Check("model cache", "ok", f"{names}; {len(models)} Qwen model(s), {size} in {folder}")
        return
    remedy = "Fetch one with `vidqa pull Qwen/Qwen2-VL-2B-Instruct`, or use --model demo (coloured shapes only)."
    yield Check("model cache", "absent", f"no Qwen2-VL that can run in {folder}", remedy)


def _predictions(subject: Subject) -> Iterator[Check]:
    """How far planned memory was from measured memory in past runs."""
    seen = calibration.summary()
    if seen is None:
        yield Check("predictions", "absent", "no run has been measured yet")
        return
    runs, ratio = seen
    percent = (ratio - 1) * 100
    status: Status = "bad" if percent > _MANY_PERCENT else "ok"  # a peak below its plan harms nobody
    remedy = "Give --reserve a little more, and report it with `vidqa doctor --json`." if status == "bad" else ""
    yield Check("predictions", status, f"measured peaks are {percent:+.1f} % of planned ones, {runs} run(s)", remedy)


_QUESTIONS: dict[str, Question] = {
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
}
_NEEDED = frozenset({"torch", "device", "ffmpeg", "attention", "model"})
_REMEDIES = {
    "torch": "Install torch and torchvision again, together.",
    "ffmpeg": "Install a newer PyAV: pip install --upgrade 'av>=18.1'.",
    "bitsandbytes": "pip install --upgrade bitsandbytes, or use --weights bf16.",
}


def findings(checks: list[Check], device: Device | None) -> dict[str, Any]:
    """The documented object of `doctor --json`."""
    from dataclasses import asdict

    rows = [{"name": c.name, "status": c.status, "detail": c.detail, "remedy": c.remedy} for c in checks]
    return {"schema_version": 1, "checks": rows, "device": None if device is None else asdict(device)}
