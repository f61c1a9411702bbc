"""Full-size models under fake tensors on a fake CUDA device, with every live byte counted.

No weight is allocated and no kernel runs: the real modules and the engine's steps are replayed. Storages are counted
from their creation to their end, rounded to the 512 bytes of CUDA's caching allocator. Fused attention, which fake
tensors would send through the math kernel, and quantized matrices are replaced by modules that allocate the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from vidqa.devices.tensor_counter import TensorCounter
from vidqa.devices.torch_device import default_dtype
from vidqa.models import cpu_linear
from vidqa.models.family import family_of
from vidqa.models.fp16 import patch_for_fp16
from vidqa.models.loader import DTYPES
from vidqa.models.spec import ModelSpec
from vidqa.models.vlm import VisionLanguageModel
from vidqa.planner.weight_memory import QUANTIZED
from vidqa.types import Placement


@torch.library.custom_op("vidqa_replay::fused_attention", mutates_args=())
def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Fused attention as PyTorch's flash and memory-efficient kernels allocate: the output and a log-sum-exp."""
    raise AssertionError("only replayed")


@fused_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    # aten/native/transformers/cuda/attention.cu, _flash_attention_forward: out like the query in
    # (batch, length, heads, dim) order, and softmax_lse (batch, heads, length) in float32.
    batch, heads, length, _ = query.shape
    out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    return out, query.new_empty(batch, heads, length, dtype=torch.float32)


class FusedAttention(TorchFunctionMode):
    """Replace scaled_dot_product_attention by what the fused kernels allocate."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return fused_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


@torch.library.custom_op("vidqa_replay::linear_4bit", mutates_args=())
def linear_4bit(states: Tensor, packed: Tensor, absmax: Tensor, outputs: int) -> Tensor:
    """A 4-bit linear layer as bitsandbytes' gemm_4bit allocates on CUDA."""
    raise AssertionError("only replayed")


@linear_4bit.register_fake
def _(states: Tensor, packed: Tensor, absmax: Tensor, outputs: int) -> Tensor:
    return states.new_empty(*states.shape[:-1], outputs)


_DEFAULT_PLACEMENT = Placement()


class ReplayedLinear4bit(nn.Module):
    """bitsandbytes' Linear4bit: packed weights, absmax per 64 values, a code of 16 floats."""

    def __init__(self, linear: nn.Linear, nested: bool) -> None:
        super().__init__()
        device, values = linear.weight.device, linear.weight.numel()
        self.outputs, self.shape, self.in_features = linear.out_features, tuple(linear.weight.shape), linear.in_features
        self.packed = torch.empty(values // 2, 1, dtype=torch.uint8, device=device)
        blocks = -(-values // 64)
        self.absmax = torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32, device=device)
        self.code = torch.empty(16, device=device)
        sizes: list[tuple[int, ...]] = [(-(-blocks // 256),), (256,), ()] if nested else []
        self.nested = [torch.empty(size, device=device) for size in sizes]
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        rows = states.numel() // states.shape[-1]
        if rows <= 4:  # the fused kernel reads the packed weights
            return linear_4bit(states, self.packed, self.absmax, self.outputs)
        # bitsandbytes/backends/cuda/ops.py, gemm_4bit: a 16-bit copy of the weight, then F.linear
        # (nested: _dequant_linear_fallback unpacks the scales to float32, and adds their offset).
        scales = [torch.empty(self.absmax.numel(), device=states.device) for _ in range(2 * bool(self.nested))]
        whole = torch.empty(self.shape, dtype=states.dtype, device=states.device)
        out = nn.functional.linear(states, whole, self.bias)
        del scales
        return out


class ReplayedLinear8bit(nn.Module):
    """bitsandbytes' Linear8bitLt: int8 weights with a float32 scale a row, and what its steps allocate."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.outputs, self.in_features = linear.out_features, linear.in_features
        self.packed = torch.empty(linear.weight.shape, dtype=torch.int8, device=linear.weight.device)
        self.absmax = torch.empty(linear.out_features, device=linear.weight.device)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        # bitsandbytes/autograd/_functions.py, MatMul8bitLt, and backends/default/ops.py: rows to int8
        # by way of float16, the product in int32, dequantised in float16, then cast.
        rows = states.reshape(-1, states.shape[-1])
        quantized = self._rows(rows.to(torch.float16))
        outliers = max(rows.shape[1] // 64, 1)
        picked = rows[:, :outliers].contiguous()
        columns = self.packed[:, :outliers].contiguous()
        whole = torch.empty(rows.shape[0], self.outputs, dtype=torch.int32, device=rows.device)
        half = torch.empty(whole.shape, dtype=torch.float16, device=rows.device)
        out = half.to(states.dtype)
        del quantized, picked, columns, whole, half
        return out.view(*states.shape[:-1], self.outputs)

    @staticmethod
    def _rows(half: Tensor) -> Tensor:
        """Rows as int8; the outlier mask lives while they are made."""
        outliers = half.abs() >= 6.0
        made = torch.empty(half.shape, dtype=torch.int8, device=half.device)
        del outliers
        return made


class ReplayedKernels:
    """Functions of `triton_kernels` that only allocate what the real ones do."""

    @dataclass(frozen=True)
    class LayerCache:
        """One layer's store and scales."""

        store: Tensor
        scales: Tensor | None

    @staticmethod
    def add_rms_norm(hidden: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return hidden if branch is None else torch.empty_like(hidden), torch.empty_like(hidden)

    @staticmethod
    def rotate_and_append(qkv: Tensor, cosine: Tensor, sine: Tensor, cache: LayerCache, lengths: Tensor) -> Tensor:
        kv_heads, dim = cache.store.shape[2], cache.store.shape[4]
        return qkv.new_empty(len(qkv), qkv.shape[1] // dim - 2 * kv_heads, dim)

    @staticmethod
    def decode_attention(query: Tensor, cache: LayerCache, lengths: Tensor) -> Tensor:
        rows, heads, dim = query.shape
        splits = min(-(-cache.store.shape[3] // 128), 64)
        sums = query.new_empty(rows, heads, splits, dim + 2, dtype=torch.float32)
        mixed = query.new_empty(rows, heads * dim)
        del sums
        return mixed

    @staticmethod
    def silu_and_multiply(gate_up: Tensor) -> Tensor:
        return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)


@dataclass
class Replay:
    """A fake model and its counter; usable inside `replayed`."""

    model: VisionLanguageModel
    live: TensorCounter

    @contextmanager
    def vision_can_be_offloaded(self) -> Iterator[None]:
        """Move the tower's tensors one by one to the host: modules of fake tensors cannot be moved."""
        tower: Any = self.model.visual

        def to(device: Any) -> None:
            if torch.device(device).type == "cpu":
                for tensor in tensors_of(tower):
                    tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype)

        tower.to = to
        try:
            yield
        finally:
            del tower.to


@contextmanager
def replayed(
    spec: ModelSpec, weights: str, placement: Placement = _DEFAULT_PLACEMENT, dtype_name: str = "bf16",
    kind: str = "cuda",
) -> Iterator[Replay]:  # fmt: skip
    """The model of a spec on a fake CUDA device, in the named precisions and placement.

    `kind` is the device whose quantized layers it has: those for CPUs are the real ones.
    """
    from transformers.initialization import no_init_weights

    cpu_linear._lanes()  # compared with real tensors

    family = family_of(spec).load_runtime()
    live, dtype = TensorCounter("cuda"), DTYPES[dtype_name]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device("cuda"), no_init_weights(), default_dtype(dtype):
            model: Any = family.hf_classes()[1](family.hf_config(spec)).eval()  # type: ignore[call-arg]
            model.tie_weights()
        if weights in QUANTIZED:
            _quantize(model.model.language_model, weights, kind)
            if placement.vision_quantized:
                _quantize(model.model.visual, weights, kind)
            if placement.lm_head_quantized:
                model.lm_head = _quantized(model.lm_head, weights, kind)
        if dtype_name == "fp16":
            # a fake weight has no values
            patch_for_fp16(model.model.language_model, model.model.visual, family, lambda linear: 1.0)
        if placement.embedding_on_host:
            table = model.get_input_embeddings()
            table.weight = nn.Parameter(torch.empty(table.weight.shape, dtype=dtype), requires_grad=False)
        adapter = VisionLanguageModel(model, spec, torch.device("cuda"), dtype, 0)
        for tensor in tensors_of(model):
            live.count(tensor)
        with live, FusedAttention():
            yield Replay(adapter, live)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Yield all tensors of a model."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, ReplayedLinear4bit):
            yield from (module.packed, module.absmax, module.code, *module.nested)
        if isinstance(module, ReplayedLinear8bit):
            yield from (module.packed, module.absmax)


def _quantize(tower: nn.Module, weights: str, kind: str) -> None:
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _quantized(child, weights, kind))


def _quantized(linear: nn.Linear, weights: str, kind: str) -> nn.Module:
    if kind == "cpu" and (made := cpu_linear.layer_class(weights, linear)):
        return made(linear)
    return ReplayedLinear8bit(linear) if weights == "int8" else ReplayedLinear4bit(linear, weights == "nf4-dq")
