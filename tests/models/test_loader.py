"""Weights in their planned place and precision, from the demo checkpoint."""

import pytest
import torch
from accelerate import cpu_offload

from vidqa.devices.torch_device import is_out_of_memory, torch_device
from vidqa.errors import UsageError
from vidqa.models.hub import demo_folder
from vidqa.models.loader import keep_embedding_on_host, load_model
from vidqa.types import Placement

CPU = torch.device("cpu")


def test_a_table_that_stays_on_the_host_has_no_hooks_left() -> None:
    """As accelerate leaves it after a device map with the host in it: on meta, carried to the device per lookup."""
    loaded = load_model(demo_folder(), CPU, "fp32", "fp32", Placement())
    model, ids = loaded.model.model, torch.tensor([1, 5, 700])
    expected = loaded.model.embed(ids)
    table = model.get_input_embeddings()
    cpu_offload(table, execution_device=CPU)
    assert table.weight.is_meta
    keep_embedding_on_host(model, demo_folder())
    assert not hasattr(table, "_hf_hook")
    assert table.weight.device == CPU
    assert torch.equal(loaded.model.embed(ids), expected)


def test_a_table_that_was_lost_is_read_again() -> None:
    loaded = load_model(demo_folder(), CPU, "fp32", "fp32", Placement())
    expected = loaded.model.embed(torch.tensor([1, 5, 700]))
    table = loaded.model.model.get_input_embeddings()
    table.weight = torch.nn.Parameter(table.weight.to("meta"), requires_grad=False)
    keep_embedding_on_host(loaded.model.model, demo_folder())
    assert torch.equal(loaded.model.embed(torch.tensor([1, 5, 700])), expected)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory


def test_a_real_failed_allocation_counts() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def test_a_device_that_is_not_there_is_told() -> None:
    for name in ("abacus", "cuda:99"):
        with pytest.raises(UsageError, match=name):
            torch_device(name)


def test_a_tied_lm_head_stays_as_the_table_is() -> None:
    place = Placement(lm_head_quantized=True)
    model = load_model(demo_folder(), CPU, "nf4", "fp32", place).model.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert type(model.lm_head) is torch.nn.Linear
