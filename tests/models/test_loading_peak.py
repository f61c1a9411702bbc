"""Peak memory while loading: the final weights and one shard or staging buffer, as planned."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.core_model_loading as loading
from safetensors.torch import load_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from demo_world.precisions import write_checkpoint
from tests.demos import QWEN2_DEMO
from tests.planner.plan_builders import made_run_config
from vidqa.devices.device import BLOCK
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.models.checkpoint import read_spec
from vidqa.models.loader import load_model
from vidqa.planner.memory_model import tensor_bytes
from vidqa.planner.weight_memory import staging_bytes
from vidqa.types import Placement

PRECISIONS = (
    ("fp32", "fp32"),
    ("bf16", "bf16"),
    ("int8", "bf16"),
    ("int4", "bf16"),
    ("int4", "fp32"),
    ("nf4-dq", "bf16"),
    ("nf4", "fp16"),
)
SHARD_BYTES = 600_000
SMALL_BYTES = 16 * BLOCK  # bitsandbytes' code tables, which all its layers share


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in eleven files."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(QWEN2_DEMO, dtype=torch.bfloat16)
    return write_checkpoint(model, tmp_path_factory.mktemp("shards"), QWEN2_DEMO, max_shard_size=SHARD_BYTES)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[TensorCounter, Any]]:
    """Return a function that runs another one and counts all tensors, also in transformers' loading threads."""

    def run(work: Callable[[], Any]) -> tuple[TensorCounter, Any]:
        live = TensorCounter("cpu")
        monkeypatch.setattr(loading, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=live.__enter__))
        with live:
            return live, work()

    return run


def load_all_at_once(folder: Path) -> Any:
    """Read every shard before the model is filled, as the loader must not."""
    tensors = {
        name: tensor.float() for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder))
    model.load_state_dict(tensors, strict=False)
    return model


@pytest.mark.parametrize(("weights", "dtype"), PRECISIONS)
def test_peak_while_loading(shards: Path, counted: Any, weights: str, dtype: str) -> None:
    assert len(list(shards.glob("*.safetensors"))) > 8
    live, loaded = counted(lambda: load_model(shards, torch.device("cpu"), weights, dtype, Placement()))
    spec, staging = read_spec(shards), staging_bytes(read_spec(shards), weights, dtype, Placement())
    assert loaded.model.weights_bytes <= live.now <= live.peak <= live.now + max(SHARD_BYTES, staging)
    planned = tensor_bytes(spec, made_run_config(weights=weights, dtype=dtype, kv=dtype, device="cpu"))["load"]
    assert live.now <= planned + SMALL_BYTES
    assert planned - staging <= live.peak <= planned + SHARD_BYTES


def test_reading_all_shards_first_is_detected(shards: Path, counted: Any) -> None:
    live, _ = counted(lambda: load_all_at_once(shards))
    assert live.peak > live.now + 10 * SHARD_BYTES
