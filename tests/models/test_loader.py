"""Placement and precision of loaded weights, and errors of allocations."""

import pytest
import torch
from accelerate import cpu_offload

from tests.demos import QWEN2_DEMO
from vidqa.devices.torch_device import is_out_of_memory, torch_device
from vidqa.errors import UsageError
from vidqa.models.loader import keep_embedding_on_host, load_model
from vidqa.types import Placement

CPU = torch.device("cpu")


@pytest.mark.parametrize("hooks", [True, False], ids=["hooks of accelerate", "on meta"])
def test_embedding_table_is_restored_on_the_host(hooks: bool) -> None:
    """After a device map with the host in it, the table is on meta and copied to the device per lookup."""
    loaded = load_model(QWEN2_DEMO, CPU, "fp32", "fp32", Placement())
    model, ids = loaded.model.model, torch.tensor([1, 5, 700])
    expected = loaded.model.embed(ids)
    table = model.get_input_embeddings()
    if hooks:
        cpu_offload(table, execution_device=CPU)
    else:
        table.weight = torch.nn.Parameter(table.weight.to("meta"), requires_grad=False)
    assert table.weight.is_meta
    keep_embedding_on_host(model, QWEN2_DEMO)
    assert not hasattr(table, "_hf_hook")
    assert table.weight.device == CPU
    assert torch.equal(loaded.model.embed(ids), expected)


def test_tied_lm_head_is_not_quantized() -> None:
    place = Placement(lm_head_quantized=True)
    model = load_model(QWEN2_DEMO, CPU, "nf4", "fp32", place).model.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_failed_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        torch_device(name)
