"""Loads a checkpoint folder onto a device: safetensors only, no code from the checkpoint."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch

from vidqa.devices.torch_device import first_line, is_out_of_memory
from vidqa.errors import ModelError, VidqaError
from vidqa.models.chat_template import ChatTemplate
from vidqa.models.checkpoint import check_supported, read_config, read_spec
from vidqa.models.config_validation import FETCH_AGAIN, quoted
from vidqa.models.family import FamilyRuntime, family_of
from vidqa.models.fp16 import largest_weight, patch_for_fp16
from vidqa.models.tokenizer_files import TokenizerFiles, read_tokenizer_files
from vidqa.models.training_domain import read_domain
from vidqa.models.vlm import VisionLanguageModel
from vidqa.models.weight_files import stored_tensors, tensor_sizes
from vidqa.types import CPU_WEIGHTS, Placement

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOAD_LOCK = threading.Lock()  # transformers has one logger and one progress hook per process
_PROGRESS_BAR = "Loading weights"  # transformers/core_model_loading.py, convert_and_load_state_dict_in_model


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, its tokenizer, the ids that end an answer, precision, placement and chat template."""

    model: VisionLanguageModel
    tokenizer: Any
    stop_ids: frozenset[int]
    weights: str
    placement: Placement
    template: ChatTemplate


def load_model(
    folder: Path,
    device: torch.device,
    weights: str,
    dtype: str,
    placement: Placement,
    on_progress: Callable[[int], None] = lambda loaded_bytes: None,
) -> Loaded:
    """Load weights and tokenizer from a local folder in the planned precision and placement.

    Weights that are stored quantized are loaded as they are. `on_progress` gets the stored bytes that are in the model
    so far; an exception from it stops the loading. Raise ModelError if the files are incomplete, the type cannot run,
    or a library is missing.
    """
    spec = read_spec(folder)
    check_supported(spec, folder.name)
    files = read_tokenizer_files(folder, spec)
    template = ChatTemplate(files.chat_template, files.template_source, files.special_tokens)
    template.start()  # in parallel with the weights
    embedding_on_host = placement.embedding_on_host and device.type != "cpu"
    family = family_of(spec).load_runtime()
    quantization = (
        None if spec.stored else _quantization(weights, dtype, placement, spec.tied, embedding_on_host, family, device)
    )
    with _LOAD_LOCK, _captured_log() as log, _progress(folder, on_progress), _as_model_error(folder, log):
        tokenizer = _load_tokenizer(files)
        host = {f"{family.LANGUAGE_MODEL}.embed_tokens": "cpu"} if embedding_on_host else {}
        model = _load_weights(
            folder,
            family,
            sorted(files.stop_ids),
            dtype=DTYPES[dtype],
            device_map={**host, "": device},
            quantization_config=quantization,
        )
    if embedding_on_host:
        keep_embedding_on_host(model, folder)
    if spec.stored is not None:
        _check_quantized(model, folder)
        for module in model.modules():
            if hasattr(module, "compute_dtype"):  # the checkpoint may name another one
                module.compute_dtype = DTYPES[dtype]
    if device.type == "cpu":
        _keep_unpacked(model)
    model.eval()
    adapter = VisionLanguageModel(model, spec, device, model.dtype, weights_bytes(model), domain=read_domain(folder))
    if model.dtype == torch.float16:  # AWQ's kernels choose it themselves
        patch_for_fp16(adapter.language_model, adapter.visual, family, largest_weight)
    return Loaded(adapter, tokenizer, files.stop_ids, weights, placement, template)


def _load_tokenizer(files: TokenizerFiles) -> Any:
    """Return transformers' tokenizer of the checked tokenizer.json; no other file is read for it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(files.tokenizer), **files.special_tokens)
    for token, number in tokenizer.get_added_vocab().items():  # contradicting ids are replaced without an error
        expected = files.added_tokens.get(token)
        if expected != number:
            raise ModelError(
                f"{files.tokenizer}: added_tokens has {quoted(token)} with the id {expected}, which is "
                f"taken or leaves a gap; it would become {number}.",
                FETCH_AGAIN,
            )
    tokenizer.chat_template = files.chat_template
    return tokenizer


def _load_weights(folder: Path, family: FamilyRuntime, stop_ids: list[int], **options: Any) -> Any:
    """Return transformers' model of the checked config.json and the checked weight files."""
    from transformers import GenerationConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    config_class, model_class = family.hf_classes()
    config = {key: value for key, value in read_config(folder).items() if key != "model_type"}
    auto_class: Any = model_class
    return auto_class.from_pretrained(
        folder,
        config=config_class(**config),
        generation_config=GenerationConfig(eos_token_id=stop_ids or None),
        use_safetensors=True,
        local_files_only=True,
        **options,
    )


def _quantization(
    weights: str, dtype: str, placement: Placement, tied: bool, embedding_on_host: bool, family: FamilyRuntime,
    device: torch.device,
) -> Any:  # fmt: skip
    """Return the configuration of quantized weights, None for others: bitsandbytes', or `cpu_quantizer`'s on a CPU."""
    if weights in DTYPES:
        return None
    skipped = [] if placement.vision_quantized else [family.VISION_TOWER]
    skipped += [] if placement.lm_head_quantized and not tied else ["lm_head"]  # a tied one is the 16-bit embedding
    if device.type == "cpu" and weights in CPU_WEIGHTS:
        from vidqa.models.cpu_quantizer import CpuQuantizationConfig

        return CpuQuantizationConfig(weights, skipped)
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns once per layer about int8 on bf16
    return BitsAndBytesConfig(
        load_in_8bit=weights == "int8",
        load_in_4bit=weights.startswith("nf4"),
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=DTYPES[dtype],
        bnb_4bit_use_double_quant=weights == "nf4-dq",
        llm_int8_skip_modules=skipped,
        llm_int8_enable_fp32_cpu_offload=embedding_on_host,
    )


def _check_quantized(model: Any, folder: Path) -> None:
    """Raise ModelError if a layer is made for bitsandbytes' codes and the files have plain numbers for it."""
    for name, module in model.named_modules():
        needed = {"Linear4bit": "quant_state", "Linear8bitLt": "SCB"}.get(type(module).__name__)
        if needed and getattr(module.weight, needed, None) is None:
            raise ModelError(
                f"{folder / 'config.json'}: quantization_config says that {name} is quantized; its weights are not.",
                FETCH_AGAIN,
            )


def _keep_unpacked(model: Any) -> None:
    """Have 4-bit matrices that bitsandbytes cannot pack for a processor with AVX512-BF16 multiplied as they are stored.

    It packs 32 rows, and scales of 64 values of a row, and fails at the first product of a matrix of another shape
    (functional.py of 0.50, _convert_weight_packed_for_cpu): a tower's MLP may be 3420 or 4304 wide.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


def keep_embedding_on_host(model: Any, folder: Path) -> None:
    """Remove accelerate's hooks, which would copy the embedding table to the device for every lookup."""
    from accelerate.hooks import remove_hook_from_submodules
    from safetensors import safe_open

    remove_hook_from_submodules(model)
    table = model.get_input_embeddings()
    if table.weight.is_meta:
        stored = next(tensor for tensor in stored_tensors(folder) if tensor.name.endswith("embed_tokens.weight"))
        with safe_open(stored.path, framework="pt", device="cpu") as shard:
            weight = shard.get_tensor(stored.name).to(model.dtype)
        table.weight = torch.nn.Parameter(weight, requires_grad=False)


def weights_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters, shared ones once, with the scales and tables of quantized ones."""
    tensors = (part for parameter in model.parameters() for part in (parameter, *_quantization_tensors(parameter)))
    return sum(tensor.nbytes for tensor in tensors)


def _quantization_tensors(parameter: Any) -> list[torch.Tensor]:
    """Return the tensors that bitsandbytes holds beside a parameter's codes."""
    state = getattr(parameter, "quant_state", None)
    states = (state, getattr(state, "state2", None))
    tensors = [getattr(each, name, None) for each in states for name in ("absmax", "code", "offset")]
    return [tensor for tensor in (*tensors, getattr(parameter, "SCB", None)) if isinstance(tensor, torch.Tensor)]


@contextmanager
def _as_model_error(folder: Path, log: BufferingHandler) -> Iterator[None]:
    """Raise errors of transformers, tokenizers and safetensors over a folder as ModelError.

    vidqa's own errors pass, and so do failed allocations.
    """
    try:
        yield
    except (VidqaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of tokenizers or safetensors is no Exception
        if is_out_of_memory(error):
            raise
        logged = "".join(record.getMessage() for record in log.buffer)
        if "out of memory" in logged:  # transformers reports a failed conversion in its log alone
            raise MemoryError(logged[-200:]) from error
        remedy = "Install what is missing." if isinstance(error, ImportError) else "Fetch it again with `vidqa pull`."
        what = f"The model in {folder} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise ModelError(what, remedy) from error


@contextmanager
def _captured_log() -> Iterator[BufferingHandler]:
    """Collect the log of transformers instead of printing it."""
    logger, handler = logging.getLogger("transformers"), BufferingHandler(10_000)
    before = (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        yield handler
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


@contextmanager
def _progress(folder: Path, on_progress: Callable[[int], None]) -> Iterator[None]:
    """Call `on_progress` after each tensor, through the public hook of transformers' progress bars."""
    from transformers.utils import logging as hf_logging

    sizes = tensor_sizes(folder)

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") != _PROGRESS_BAR or not args:
            return factory(*args, **options)
        return _count_bytes(list(args[0]), sizes, on_progress)

    before = hf_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        hf_logging.set_tqdm_hook(before)


def _count_bytes(
    items: list[tuple[str, Any]], sizes: dict[str, int], on_progress: Callable[[int], None]
) -> Iterator[Any]:
    """Yield the items; when the next one is requested, the one before is in the model."""
    done, total = 0, sum(sizes.values())
    item_sizes = [_stored_bytes(mapping.source_patterns, sizes) for _, mapping in items]
    known = all(size is not None for size in item_sizes)
    for count, (item, size) in enumerate(zip(items, item_sizes, strict=True), start=1):
        yield item
        # Items of several stored tensors have unknown sizes: then all count alike.
        done = done + size if known and size is not None else round(count * total / len(items))
        on_progress(done)


def _stored_bytes(names: Iterable[str], sizes: dict[str, int]) -> int | None:
    known = [sizes[name] for name in names if name in sizes]
    return sum(known) if known else None
