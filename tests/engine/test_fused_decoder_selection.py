"""The decode step in few kernels: the plain one's tokens, few device operations, and no copy of the weights."""

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.engine.test_static_decode_step import room, static_tokens
from tests.tiny import Pair, pair
from vidqa.engine import fused_decoder_selection
from vidqa.engine.fused_decoder_selection import difference, why_not_fused
from vidqa.engine.static_decode_step import DecodeState, next_hidden
from vidqa.models.fused_decoder import FusedDecoder, merge_linear
from vidqa.models.vlm import VisionLanguageModel

pytest.importorskip("triton", reason="Triton is not installed on this system")
from vidqa.models import triton_kernels

INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton runs on the GPU here, and these tensors are on the CPU"
)
CPU = torch.device("cpu")
_VIEWS = {
    "view", "t", "transpose", "unsqueeze", "select", "slice", "expand", "permute", "_unsafe_view", "detach", "alias",
    "split", "split_with_sizes", "unbind", "as_strided", "_reshape_alias",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts what would be launched on a device: operators that are no views, and a launch of a kernel as one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name not in _VIEWS and not name.startswith("empty") and not name.startswith("new_empty")
        return func(*args, **(kwargs or {}))

    def launching(self, kernel: Callable[..., Any], launches: int) -> Callable[..., Any]:
        """A function of `triton_kernels` whose launches count, not what the interpreter does."""

        def launch(*args: Any) -> Any:
            self.count += launches
            with _disable_current_modes():
                return kernel(*args)

        return launch


class CountedKernels:
    """`triton_kernels`, each launch counted."""

    LayerCache = triton_kernels.LayerCache

    def __init__(self, operations: Operations) -> None:
        launches = {"add_rms_norm": 1, "rotate_and_append": 1, "decode_attention": 2, "silu_and_multiply": 1}
        for name, count in launches.items():
            setattr(self, name, operations.launching(getattr(triton_kernels, name), count))


def fused_pair(layout: str, kernels: Any = triton_kernels, merge: bool = True) -> Pair:
    """A pair whose own model has fused layers; the shared one stays as it is."""
    models = pair(layout)
    own = replace(models.ours, model=copy.deepcopy(models.ours.model))
    return Pair(models.oracle, own.with_fused(FusedDecoder.of(own.model.model.language_model, kernels, merge=merge)))


@INTERPRETED
@pytest.mark.parametrize("layout", ["2B", "7B"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("merge", [True, False])
def test_fused_layers_give_the_plain_ones_tokens(layout: str, quantized: bool, merge: bool) -> None:
    models = pair(layout)
    expected, logits = static_tokens(models, room(models, 2, quantized=quantized), 12)
    fused = fused_pair(layout, merge=merge)
    ours, last = static_tokens(fused, room(models, 2, quantized=quantized), 12)
    assert ours == expected
    assert torch.allclose(last, logits, atol=1e-3 if quantized else 1e-4, rtol=0)


def operations_of(model: VisionLanguageModel, operations: Operations) -> int:
    """Device operations of one step; its cache is empty."""
    models = Pair(pair("2B").oracle, model)
    storage, decode_state = room(models, 1), DecodeState.of([3], [3], CPU)
    with torch.no_grad(), operations:
        next_hidden(model, torch.randn(1, model.spec.hidden), storage, decode_state, storage.capacity)
    return operations.count


@INTERPRETED
def test_a_fused_layer_is_ten_device_operations() -> None:
    counts = []
    for layers in (1, 2):
        operations = Operations()
        model = fused_pair("2B", CountedKernels(operations)).ours
        assert model.fused is not None
        shorter = model.with_fused(replace(model.fused, layers=model.fused.layers[:layers]))
        counts.append(operations_of(shorter, operations))
    assert counts[1] - counts[0] == 10  # the bar is 25


def test_a_plain_layer_has_lost_what_all_layers_share() -> None:
    counts = []
    for layers in (1, 2):
        model = replace(pair("2B").ours, model=copy.deepcopy(pair("2B").ours.model))
        text = model.language_model
        text.layers = text.layers[:layers]
        counts.append(operations_of(model, Operations()))
    assert counts[1] - counts[0] <= 50  # 54 when each layer made its own indices


def test_merged_projections_are_one_matrix_and_the_modules_its_views() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(16, width) for width in (16, 4, 4)]
    states, separate = torch.randn(3, 16), []
    with torch.no_grad():
        separate = [module(states) for module in modules]
        merged = merge_linear(modules)
        assert torch.equal(merged(states), torch.cat(separate, -1))
        assert torch.equal(modules[1](states), separate[1])
    storages = {module.weight.untyped_storage().data_ptr() for module in modules}
    assert len(storages) == 1 and modules[0].weight.untyped_storage().nbytes() == 24 * 16 * 4


def test_quantized_projections_keep_their_own_form() -> None:
    class Packed(nn.Linear):
        """Not a plain linear layer."""

    modules = [Packed(16, width) for width in (16, 4, 4)]
    weights = [module.weight for module in modules]
    states = torch.randn(2, 16)
    assert torch.equal(merge_linear(modules)(states), torch.cat([module(states) for module in modules], -1))
    assert all(module.weight is weight for module, weight in zip(modules, weights, strict=True))


def test_projections_are_merged_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_decoder_selection, "why_not_fused", lambda spec, device, dtype: "")
    own = replace(pair("2B").ours, model=copy.deepcopy(pair("2B").ours.model))
    layer = own.model.model.language_model.layers[0]
    needed = ((12 + 2 + 2) * 16 + 2 * 96) * 192 * 4  # queries, keys and values; gate and up
    for room_bytes, merges in ((needed - 1, False), (needed, True)):
        assert fused_decoder_selection.fuse(own, room_bytes).fused is not None
        gate, up = (module.weight.untyped_storage() for module in (layer.mlp.gate_proj, layer.mlp.up_proj))
        assert (gate.data_ptr() == up.data_ptr()) == merges


def test_the_reason_why_fused_layers_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pair("2B").ours.spec
    assert "on cpu" in why_not_fused(spec, CPU, torch.float32)
    monkeypatch.setattr(fused_decoder_selection, "can_compile", lambda device: "")
    assert "no power of two" in why_not_fused(replace(spec, head_dim=80), CPU, torch.float32)
    assert "float16" in why_not_fused(spec, CPU, torch.float16)


def scaled(factor: Callable[[Any], float]) -> Callable[..., Any]:
    """A decode attention whose result is multiplied by `factor(cache)`."""
    return lambda query, cache, lengths: triton_kernels.decode_attention(query, cache, lengths) * factor(cache)


def broken(gate_up: Any) -> Any:
    raise RuntimeError("ptxas died\nlong story")


@INTERPRETED
@pytest.mark.parametrize(
    ("name", "kernel", "reason"),
    [
        ("decode_attention", triton_kernels.decode_attention, ""),
        ("silu_and_multiply", lambda gate_up: triton_kernels.silu_and_multiply(gate_up) * 1.1, "differ from the plain"),
        ("silu_and_multiply", broken, "do not run: ptxas died"),
        ("decode_attention", scaled(lambda cache: 1 if cache.scales is None else torch.nan), "plain layers by nan"),
        ("decode_attention", scaled(lambda cache: 1.5 if cache.store.shape[3] > 8192 else 1), "differ from the plain"),
    ],
)
def test_kernels_are_compared_before_they_are_used(
    name: str, kernel: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the interpreter they agree; a kernel that is off, or does not compile, leaves the plain layers."""
    kernels = CountedKernels(Operations())
    setattr(kernels, name, kernel)
    monkeypatch.setattr(fused_decoder_selection, "can_compile", lambda device: "")
    monkeypatch.setattr(fused_decoder_selection, "load_kernels", lambda: kernels)
    fused_decoder_selection._compared.cache_clear()
    found = why_not_fused(pair("2B").ours.spec, CPU, torch.float32)
    fused_decoder_selection._compared.cache_clear()
    assert reason in found and bool(reason) == bool(found)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("heads", [(12, 2), (28, 4)])
def test_kernels_agree_in_bfloat16_on_a_gpu(heads: tuple[int, int]) -> None:
    spec = replace(pair("2B").ours.spec, hidden=heads[0] * 128, heads=heads[0], kv_heads=heads[1], head_dim=128)
    assert max(difference(spec, torch.device("cuda"), torch.bfloat16, triton_kernels)) < 3e-2
