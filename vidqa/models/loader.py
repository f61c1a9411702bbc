"""A checkpoint folder to a model on a device. Safetensors only, no code from the checkpoint.

Knows transformers' loading; decides nothing about memory.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidqa.devices.torch_device import first_line, is_out_of_memory
from vidqa.errors import ModelError, VidqaError
from vidqa.models.chat_template import ChatTemplate
from vidqa.models.checkpoint import check_supported, read_config, read_spec
from vidqa.models.family import FamilyRuntime, family_of
from vidqa.models.fp16 import largest_weight, patch_for_fp16
from vidqa.models.json_rules import AGAIN, shown
from vidqa.models.load_progress import counting
from vidqa.models.tokenizer_files import TextSide, read_text_side
from vidqa.models.vlm import VisionLanguageModel
from vidqa.models.weight_files import weight_files
from vidqa.types import Placement

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ONE_AT_A_TIME = threading.Lock()  # transformers has one logger and one progress hook for the process


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, its tokenizer, the ids that end an answer, how it was loaded, and its chat template."""

    model: VisionLanguageModel
    tokenizer: Any
    stop_ids: frozenset[int]
    weights: str
    placement: Placement
    template: ChatTemplate


def _not_told(done_bytes: int) -> None:
    """Nobody listens."""


def load_model(
    folder: Path,
    device: torch.device,
    weights: str,
    dtype: str,
    placement: Placement,
    told: Callable[[int], None] = _not_told,
) -> Loaded:
    """Load weights and tokenizer from a local folder in the planned precision and placement.

    A checkpoint that is stored quantized is loaded as it is. `told` is called with the stored bytes
    that are in the model so far; what it raises stops the loading. Raises ModelError when they are
    incomplete, of a type that cannot run, or when a library is missing.
    """
    with _ONE_AT_A_TIME:
        return _load(folder, device, weights, dtype, placement, told)


def _load(
    folder: Path, device: torch.device, weights: str, dtype: str, placement: Placement, told: Callable[[int], None]
) -> Loaded:
    spec = read_spec(folder)
    check_supported(spec, folder.name)
    texts = read_text_side(folder, spec)
    template = ChatTemplate(texts.template, texts.template_source, texts.special)
    template.start()  # it is ready before the weights are
    host_table = placement.embedding_on_host and device.type != "cpu"
    family = family_of(spec).load_runtime()
    quantization = None if spec.stored else _quantization(weights, dtype, placement, spec.tied, host_table, family)
    with _listening() as heard, counting(folder, told), _as_model_error(folder, heard):
        tokenizer = _tokenizer(texts)
        devices: dict[str, Any] = (
            {f"{family.LANGUAGE_MODEL}.embed_tokens": "cpu", "": device} if host_table else {"": device}
        )
        model = _model(
            folder,
            family,
            sorted(texts.stop_ids),
            dtype=DTYPES[dtype],
            device_map=devices,
            quantization_config=quantization,
        )
    if host_table:
        keep_on_host(model, folder)
    if spec.stored is not None:
        check_quantized(model, folder)
        compute_in(model, DTYPES[dtype])
    model.eval()
    adapter = VisionLanguageModel(
        model=model, spec=spec, device=device, dtype=model.dtype, weights_bytes=weights_bytes(model)
    )
    if model.dtype == torch.float16:  # AWQ's kernels choose it themselves
        patch_for_fp16(adapter.language_model, adapter.visual, family, largest_weight)
    return Loaded(adapter, tokenizer, texts.stop_ids, weights, placement, template)


def _tokenizer(texts: TextSide) -> Any:
    """transformers' tokenizer of the checked tokenizer.json: nothing else of the folder is read for it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(texts.tokenizer), **texts.special)
    for token, number in tokenizer.get_added_vocab().items():  # the library numbers a token anew where ids contradict
        if texts.added.get(token) != number:
            raise ModelError(
                f"{texts.tokenizer}: added_tokens has {shown(token)} with the id {texts.added.get(token)}, which is "
                f"taken or leaves a gap; it would become {number}.",
                AGAIN,
            )
    tokenizer.chat_template = texts.template
    return tokenizer


def _model(folder: Path, family: FamilyRuntime, stop_ids: list[int], **how: Any) -> Any:
    """transformers' model from the checked values of config.json and the checked weight files."""
    from transformers import GenerationConfig
    from transformers.utils import logging as talk

    talk.disable_progress_bar()
    config_class, model_class = family.hf_classes()
    config = {key: value for key, value in read_config(folder).items() if key != "model_type"}
    made: Any = model_class
    return made.from_pretrained(
        folder,
        config=config_class(**config),
        generation_config=GenerationConfig(eos_token_id=stop_ids or None),
        use_safetensors=True,
        local_files_only=True,
        **how,
    )


@contextmanager
def _as_model_error(folder: Path, heard: "_Heard") -> Iterator[None]:
    """Turn what transformers, tokenizers or safetensors raise over a folder into ModelError: its files are the cause.

    What vidqa raises itself passes, and so does a failed allocation.
    """
    try:
        yield
    except (VidqaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of tokenizers or safetensors is no Exception
        if is_out_of_memory(error):
            raise
        if "out of memory" in heard.text:  # transformers tells of a failed conversion in its log alone
            raise MemoryError(heard.text[-200:]) from error
        remedy = "Install what is missing." if isinstance(error, ImportError) else "Fetch it again with `vidqa pull`."
        what = f"The model in {folder} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise ModelError(what, remedy) from error


def _quantization(
    weights: str, dtype: str, placement: Placement, tied: bool, host_table: bool, family: FamilyRuntime
) -> Any:
    """bitsandbytes' configuration of a precision; None for whole numbers of bits."""
    if weights in DTYPES:
        return None
    from transformers import BitsAndBytesConfig

    skipped = [] if placement.vision_quantized else [family.VISION_TOWER]
    skipped += [] if placement.lm_head_quantized and not tied else ["lm_head"]  # else it is the table, in 16-bit
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one warning a layer about int8 on bf16
    return BitsAndBytesConfig(
        load_in_8bit=weights == "int8",
        load_in_4bit=weights.startswith("nf4"),
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=DTYPES[dtype],
        bnb_4bit_use_double_quant=weights == "nf4-dq",
        llm_int8_skip_modules=skipped,
        llm_int8_enable_fp32_cpu_offload=host_table,
    )


def check_quantized(model: Any, folder: Path) -> None:
    """Raise ModelError where a layer was made for bitsandbytes' codes and the files had plain numbers for it."""
    for name, module in model.named_modules():
        needed = {"Linear4bit": "quant_state", "Linear8bitLt": "SCB"}.get(type(module).__name__)
        if needed and getattr(module.weight, needed, None) is None:
            raise ModelError(
                f"{folder / 'config.json'}: quantization_config says that {name} is quantized; its weights are not.",
                AGAIN,
            )


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let stored 4-bit layers compute in the planned precision: the checkpoint may name another one."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


def keep_on_host(model: Any, folder: Path) -> None:
    """Undo the hooks with which accelerate would carry the embedding table to the device for every lookup."""
    from accelerate.hooks import remove_hook_from_submodules

    remove_hook_from_submodules(model)
    table = model.get_input_embeddings()
    if table.weight.is_meta:
        weight = _read_tensor(folder, "embed_tokens.weight").to(model.dtype)
        table.weight = torch.nn.Parameter(weight, requires_grad=False)


def _read_tensor(folder: Path, ending: str) -> torch.Tensor:
    """The tensor of a checkpoint whose name ends so, on the host."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt", device="cpu") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                if name.endswith(ending):
                    tensor: torch.Tensor = shard.get_tensor(name)
                    return tensor
    raise ModelError(f"The model in {folder} has no tensor {ending}.", "Fetch it again with `vidqa pull`.")


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters, shared ones once, with the scales and tables of quantized ones."""
    tensors = [part for parameter in model.parameters() for part in (parameter, *_quantization_state(parameter))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _quantization_state(parameter: Any) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a parameter's own numbers."""
    state = getattr(parameter, "quant_state", None)
    nested = getattr(state, "state2", None)
    parts = [getattr(state, "absmax", None), getattr(state, "code", None), getattr(state, "offset", None)]
    parts += [getattr(nested, "absmax", None), getattr(nested, "code", None), getattr(parameter, "SCB", None)]
    return [part for part in parts if isinstance(part, torch.Tensor)]


class _Heard(logging.Handler):
    """Keeps what transformers says while it loads: an error there may be told nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()


@contextmanager
def _listening() -> Iterator[_Heard]:
    logger, heard = logging.getLogger("transformers"), _Heard()
    before = (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = [heard], False
    logger.setLevel(logging.WARNING)
    try:
        yield heard
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
