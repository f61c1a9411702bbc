"""Folders of models by name, from a cache that the tests write; no network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import read_spec
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS, read_bounds
from vidqa.models.family import family_of
from vidqa.models.hub import demo_folder, resolve_model

DEMO_CLIP = Path(__file__).parents[2] / "assets" / "demo.mp4"
QWEN = "Qwen/Qwen2-VL-2B-Instruct"
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True, "vocab_size": 151936,
    "max_position_embeddings": 32768, "video_token_id": 151656, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "patch_size": 14, "spatial_patch_size": 14},
}  # fmt: skip


def write_model(folder: Path, *, weights: bool = True, **changes: Any) -> Path:
    """Write a config.json as the hub has it, without text_config, and unless not `weights` a file of zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    if weights:
        (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    return folder


def write_cached(cache: Path, repository: str, *, weights: bool = True, **changes: Any) -> Path:
    """Write a repository in the layout of Hugging Face's cache."""
    base = cache / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("abc123")
    return write_model(base / "snapshots" / "abc123", weights=weights, **changes)


def run_offline(cache: Path, *arguments: str) -> tuple[int, str, str]:
    """Run vidqa in a process, since Hugging Face reads its environment on import; return code, stdout and stderr."""
    environment = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(cache)}
    command = [sys.executable, "-m", "vidqa", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_demo_is_resolved() -> None:
    folder = resolve_model("demo")
    assert folder == demo_folder()
    spec = read_spec(folder)
    bounds = family_of(spec).read_bounds(folder, spec)
    assert (spec.model_type, spec.heads, spec.kv_heads, spec.head_dim) == ("qwen3_vl", 6, 2, 32)
    assert (bounds.min_pixels, bounds.max_frames, bounds.source) == (96 * 96, 16, "checkpoint")


def test_config_without_text_config(tmp_path: Path) -> None:
    spec = read_spec(write_model(tmp_path))
    assert spec.kv_bytes_per_token(2) == 28 * 1024
    assert spec.visual_tokens(frames=8, height=560, width=1008) == 4 * 720


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("other.json", {}, (REFERENCE_BOUNDS.min_pixels, REFERENCE_BOUNDS.max_pixels)),
        ("preprocessor_config.json", {"min_pixels": 3136, "max_pixels": 12845056},  # of images
         (REFERENCE_BOUNDS.min_pixels, REFERENCE_BOUNDS.max_pixels)),
        ("processor_config.json", {"video_processor": {"size": {"shortest_edge": 1000, "longest_edge": 2000}}},
         (1000, 2000)),
        ("processor_config.json", {"video_processor": {"min_pixels": 1000, "max_pixels": 2000}}, (1000, 2000)),
    ],
)  # fmt: skip
def test_bounds_of_the_video_processor(
    file: str, content: dict[str, Any], expected: tuple[int, int], tmp_path: Path
) -> None:
    (write_model(tmp_path) / file).write_text(json.dumps(content))
    bounds = read_bounds(tmp_path, read_spec(tmp_path))
    assert (bounds.min_pixels, bounds.max_pixels) == expected
    assert (bounds == REFERENCE_BOUNDS) == (expected != (1000, 2000))


def test_unusable_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'llama'; vidqa runs Qwen2-VL"):
        read_spec(write_model(tmp_path / "llama", model_type="llama"))
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(write_model(tmp_path / "bare", weights=False)), "incomplete or not safetensors"),
        (str(tmp_path / "empty"), r"config\.json is missing"),
        ("no such thing", "neither a folder, nor OWNER/NAME, nor a short name"),
        ("~nosuchuser/model", "neither a folder, nor OWNER/NAME, nor a short name"),
        ("/" + "x" * 300, "neither a folder, nor OWNER/NAME, nor a short name"),
    ):
        with pytest.raises(ModelMissing, match=message):
            resolve_model(name)


def test_missing_shard_is_noticed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, weights=False)
    shards = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": {shard.stem: shard.name for shard in shards}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shards[0].write_bytes(b"\0")
    with pytest.raises(ModelMissing, match="incomplete"):
        resolve_model(str(folder))
    shards[1].write_bytes(b"\0")
    assert resolve_model(str(folder)) == folder


def test_models_lists_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == ExitCode.OK
    assert "coloured shapes only" in capsys.readouterr().out


def test_models_lists_cached_models_with_size(tmp_path: Path) -> None:
    write_cached(tmp_path, QWEN)
    write_cached(tmp_path, "Qwen/Qwen2.5-VL-3B-Instruct", model_type="qwen2_5_vl")
    write_cached(tmp_path, "Qwen/Qwen3-VL-30B-A3B-Instruct", model_type="qwen3_vl_moe")
    write_cached(tmp_path, "some/bert", model_type="bert")
    for name, content in (("deep", "[" * 100_000), ("list", "[1]"), ("cut", '{"model_type": "qw')):
        (write_cached(tmp_path, f"some/{name}") / "config.json").write_text(content)
    code, output, error = run_offline(tmp_path, "models", "--json")
    assert code == ExitCode.OK, error
    models = json.loads(output)["models"]
    assert [(model["name"], model["note"]) for model in models] == [
        ("demo", "coloured shapes only"), (QWEN, ""), ("Qwen/Qwen2.5-VL-3B-Instruct", ""),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "not runnable"),
    ]  # fmt: skip
    assert models[1]["size_bytes"] > 1000


def test_ask_names_the_missing_repository(tmp_path: Path) -> None:
    code, output, error = run_offline(tmp_path, "ask", str(DEMO_CLIP), "what?", "--model", QWEN)
    assert (code, output) == (ExitCode.MODEL_MISSING, "")
    assert str(tmp_path) in error and f"vidqa pull {QWEN}" in error and "--model demo" in error


def test_a_model_with_broken_files_is_planned_as_released_for_other_cards(tmp_path: Path) -> None:
    write_cached(tmp_path, QWEN)  # its weights are zeros
    code, out, err = run_offline(tmp_path, "plan", str(DEMO_CLIP), "--gpu", "all", "--no-calibrate")
    assert code == ExitCode.OK and out.startswith("recommended: Qwen3-VL-8B")
    assert f"{QWEN} is planned as it was released: " in err and "model.safetensors" in err
    code, out, err = run_offline(tmp_path, "plan", str(DEMO_CLIP), "--gpu", "all", "--model", "2b")
    assert (code, out) == (ExitCode.FAILED, "") and "model.safetensors" in err


@pytest.mark.parametrize("part_bytes", [0, 1_500_000])
def test_pull_offline(part_bytes: int, tmp_path: Path) -> None:
    if part_bytes:
        blobs = write_cached(tmp_path, QWEN, weights=False).parents[1] / "blobs"
        blobs.mkdir()
        (blobs / "abc.part").write_bytes(bytes(part_bytes))
    returned, output, error = run_offline(tmp_path, "pull", QWEN)
    assert (returned, output) == (ExitCode.MODEL_MISSING, "")
    assert "HF_HUB_OFFLINE says that this machine is offline" in error and "safetensors" not in error
    assert ("; 1.5 MB of it are here, and the download goes on from there" in error) == bool(part_bytes)


def test_a_whole_model_is_pulled_offline(tmp_path: Path) -> None:
    folder = write_cached(tmp_path, QWEN)
    code, output, error = run_offline(tmp_path, "pull", "2b")
    assert (code, output.strip()) == (ExitCode.OK, str(folder)), error


def test_a_download_that_is_not_complete_is_named_with_the_command_that_goes_on(tmp_path: Path) -> None:
    write_cached(tmp_path, QWEN, weights=False)
    code, _, error = run_offline(tmp_path, "ask", str(DEMO_CLIP), "what?", "--model", "2b")
    assert code == ExitCode.MODEL_MISSING
    assert f"The download of {QWEN} is not complete" in error and f"`vidqa pull {QWEN}`, which goes on" in error


@pytest.mark.parametrize("name", ["demo", "folder"])
def test_of_a_model_that_is_here_nothing_is_fetched(name: str, tmp_path: Path) -> None:
    folder = demo_folder() if name == "demo" else write_model(tmp_path / "folder")
    code, output, error = run_offline(tmp_path, "pull", name if name == "demo" else str(folder))
    assert (code, output.strip()) == (ExitCode.OK, str(folder)) and "nothing is fetched" in error


def test_pull_knows_the_names_that_the_option_knows(tmp_path: Path) -> None:
    refusals = {run_offline(tmp_path, *words)[2] for words in (
        ["pull", "3b"], ["ask", str(DEMO_CLIP), "what?", "--model", "3b"],
    )}  # fmt: skip
    assert len(refusals) == 1 and "neither a folder, nor OWNER/NAME, nor a short name" in refusals.pop()


@pytest.mark.parametrize("command", [["pull", "3-vl-30b"], ["ask", str(DEMO_CLIP), "what?", "--model", "3-vl-30b"]])
def test_a_model_that_does_not_run_is_refused_before_a_download(command: list[str], tmp_path: Path) -> None:
    code, output, error = run_offline(tmp_path, *command)
    assert (code, output) == (ExitCode.FAILED, "")
    assert "Qwen3-VL-30B-A3B-Instruct is a 'qwen3_vl_moe' checkpoint, with experts" in error


def test_a_short_name_is_fetched_by_its_repository(tmp_path: Path) -> None:
    code, _, error = run_offline(tmp_path, "pull", "3-VL-4b")
    assert code == ExitCode.MODEL_MISSING and "Qwen/Qwen3-VL-4B-Instruct is not fetched" in error


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x/cache"},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "$BASE/hf", "BASE": "/b", "XDG_CACHE_HOME": "/x"},
        {"HUGGINGFACE_HUB_CACHE": "/older", "HF_HOME": "/hf"},
        {"HF_HUB_CACHE": "~/hub", "HUGGINGFACE_HUB_CACHE": "/older"},
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(variables: dict[str, str]) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/home/someone"} | variables
    probe = (
        "from huggingface_hub.constants import HF_HUB_CACHE; from vidqa.models.hub import cache_folder; "
        "print(HF_HUB_CACHE, cache_folder(), sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=environment, check=True)
    theirs, ours = run.stdout.splitlines()
    assert ours == theirs
