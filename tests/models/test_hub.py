"""Names to folders, with a cache made by hand; nothing touches a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError

from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import check_supported, read_spec
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS, read_bounds
from vidqa.models.hub import demo_folder, pull_model, resolve_model

DEMO_CLIP = Path(__file__).parents[2] / "assets" / "demo.mp4"
FLAT_2B = {
    "model_type": "qwen2_vl", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True, "vocab_size": 151936,
    "max_position_embeddings": 32768, "video_token_id": 151656, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "patch_size": 14, "spatial_patch_size": 14},
}  # fmt: skip


def write_model(folder: Path, config: dict[str, object] | None = None, *, weights: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or FLAT_2B))
    if weights:
        (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    return folder


def write_cached(
    cache: Path, repository: str, config: dict[str, object] | None = None, *, weights: bool = True
) -> Path:
    """A repository as Hugging Face's cache lays it out."""
    base = cache / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("abc123")
    return write_model(base / "snapshots" / "abc123", config, weights=weights)


def in_cache(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """vidqa in a process of its own: Hugging Face reads its environment once, on import."""
    environment = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(cache)}
    command = [sys.executable, "-m", "vidqa", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_demo_is_found_and_read() -> None:
    folder = resolve_model("demo")
    assert folder == demo_folder()
    spec, bounds = read_spec(folder), read_bounds(folder)
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (6, 2, 32)
    assert (bounds.min_pixels, bounds.max_frames, bounds.source) == (84 * 84, 16, "checkpoint")


def test_a_hub_config_is_read_flat(tmp_path: Path) -> None:
    spec = read_spec(write_model(tmp_path / "m"))
    assert spec.kv_bytes_per_token(2) == 28 * 1024
    assert spec.visual_tokens(frames=8, height=560, width=1008) == 4 * 720
    assert read_bounds(tmp_path / "m") == REFERENCE_BOUNDS


def test_image_bounds_are_never_taken_for_videos(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    assert read_bounds(folder) == REFERENCE_BOUNDS


@pytest.mark.parametrize("key", ["size", "pixels"])
def test_the_checkpoints_own_video_bounds_win(tmp_path: Path, key: str) -> None:
    folder = write_model(tmp_path / "m")
    own = (
        {"size": {"shortest_edge": 1000, "longest_edge": 2000}}
        if key == "size"
        else {"min_pixels": 1000, "max_pixels": 2000}
    )
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": own}))
    assert (read_bounds(folder).min_pixels, read_bounds(folder).max_pixels) == (1000, 2000)


def test_what_is_not_runnable_is_refused(tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", {**FLAT_2B, "model_type": "qwen2_5_vl"})
    with pytest.raises(ModelError, match="'qwen2_5_vl'"):
        check_supported(read_spec(other), "other")
    with pytest.raises(ModelError, match="'llama'"):
        read_spec(write_model(tmp_path / "llama", {**FLAT_2B, "model_type": "llama"}))
    with pytest.raises(ModelMissing, match="incomplete or not safetensors"):
        resolve_model(str(write_model(tmp_path / "bare", weights=False)))
    with pytest.raises(ModelMissing, match=r"config\.json is missing"):
        (tmp_path / "empty").mkdir()
        resolve_model(str(tmp_path / "empty"))
    with pytest.raises(ModelMissing, match="neither a folder nor OWNER/NAME"):
        resolve_model("no such thing")


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", weights=False)
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\0")
    with pytest.raises(ModelMissing, match="incomplete"):
        resolve_model(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"\0")
    assert resolve_model(str(folder)) == folder


def test_models_lists_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == ExitCode.OK
    assert "coloured shapes only" in capsys.readouterr().out


def test_cached_models_are_listed_with_size(tmp_path: Path) -> None:
    write_cached(tmp_path, "Qwen/Qwen2-VL-2B-Instruct")
    write_cached(tmp_path, "Qwen/Qwen2.5-VL-3B-Instruct", {**FLAT_2B, "model_type": "qwen2_5_vl"})
    write_cached(tmp_path, "some/bert", {"model_type": "bert"})
    for name, content in (("deep", "[" * 100_000), ("list", "[1]"), ("cut", '{"model_type": "qw')):
        write_cached(tmp_path, f"some/{name}")
        (tmp_path / f"models--some--{name}" / "snapshots" / "abc123" / "config.json").write_text(content)
    done = in_cache(tmp_path, "models", "--json")
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)["models"]
    assert [(model["name"], model["note"]) for model in models] == [
        ("demo", "coloured shapes only"),
        ("Qwen/Qwen2-VL-2B-Instruct", ""),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "not runnable"),
    ]
    assert models[1]["size_bytes"] > 1000


def test_a_missing_repository_is_an_error_in_one_paragraph(tmp_path: Path) -> None:
    done = in_cache(tmp_path, "ask", str(DEMO_CLIP), "what?", "--model", "Qwen/Qwen2-VL-2B-Instruct")
    said = " ".join(done.stderr.split())
    assert done.returncode == ExitCode.MODEL_MISSING
    assert done.stdout == ""
    assert str(tmp_path) in said and "vidqa pull Qwen/Qwen2-VL-2B-Instruct" in said and "--model demo" in said
    assert "Traceback" not in said


def test_pull_says_why_it_cannot(tmp_path: Path) -> None:
    done = in_cache(tmp_path, "pull", "Qwen/Qwen2-VL-2B-Instruct")
    assert done.returncode == ExitCode.MODEL_MISSING
    assert "cannot be reached" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_pull_does_not_take_half_a_fetch_for_a_model(tmp_path: Path) -> None:
    write_cached(tmp_path, "Qwen/Qwen2-VL-2B-Instruct", weights=False)
    done = in_cache(tmp_path, "pull", "Qwen/Qwen2-VL-2B-Instruct")
    assert done.returncode == ExitCode.MODEL_MISSING
    assert done.stdout == ""
    assert "resumes the download" in " ".join(done.stderr.split())


def test_pull_refuses_another_type_before_its_weights(tmp_path: Path) -> None:
    write_cached(tmp_path, "Qwen/Qwen2.5-VL-3B-Instruct", {**FLAT_2B, "model_type": "qwen2_5_vl"}, weights=False)
    done = in_cache(tmp_path, "pull", "Qwen/Qwen2.5-VL-3B-Instruct")
    assert done.returncode == ExitCode.FAILED
    assert "'qwen2_5_vl'" in " ".join(done.stderr.split())


def test_a_connection_that_breaks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_model(tmp_path / "m") / "config.json"
    transport_error = HfHubHTTPError.__bases__[0]

    def broken(*_: object, **__: object) -> str:
        raise transport_error("peer closed connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(config))
    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(ModelMissing, match="resumes the download"):
        pull_model("Qwen/Qwen2-VL-2B-Instruct")
