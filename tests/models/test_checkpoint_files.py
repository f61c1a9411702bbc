"""Checkpoints with one fault: the error names file, key, value and remedy, before torch is imported."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from tests.demos import QWEN2_DEMO
from tests.models.hostile import copy_demo
from tests.tiny import pair
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import read_spec, tensor_shapes
from vidqa.models.loader import load_model
from vidqa.models.registry import find_checkpoints
from vidqa.types import Placement

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_demo(tmp_path / "m")


def set_value(folder: Path, file: str, key: str, value: Any) -> None:
    """Set one value of a JSON file; `key` is a dotted path."""
    content = json.loads((folder / file).read_text())
    *inner, last = key.split(".")
    section = content
    for name in inner:
        section = section[int(name) if isinstance(section, list) else name]
    section[last] = value
    (folder / file).write_text(json.dumps(content))


def edit_header(folder: Path, edit: Any) -> None:
    """Change the header of model.safetensors, not its tensors."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def error_of(folder: Path, *, local: bool = True) -> str:
    """Return the error of a folder."""
    with pytest.raises(ModelError) as failed:
        find_checkpoints(str(folder), local=local)
    assert failed.value.remedy
    return failed.value.what


TEXT, VISION = "text_config.", "vision_config."


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        (TEXT + "hidden_size", 0, "is 0; it must be a whole number from 2 to 131072"),
        (TEXT + "hidden_size", -192, "is -192; it must be a whole number"),
        (TEXT + "hidden_size", True, "is true; it must be a whole number"),
        (TEXT + "hidden_size", "192", "is '192'; it must be a whole number"),
        (TEXT + "hidden_size", 192.0, "is 192.0; it must be a whole number"),
        (TEXT + "hidden_size", None, "is null; it must be a whole number"),
        (TEXT + "hidden_size", 10**30, f"is {10**30}; it must be a whole number"),
        (TEXT + "num_attention_heads", 5, "is 5; it must divide hidden_size, 192"),
        (TEXT + "num_key_value_heads", 4, "is 4; it must divide num_attention_heads, 6"),
        (TEXT + "num_key_value_heads", 0, "is 0; it must be a whole number from 1"),
        (TEXT + "num_hidden_layers", 10**6, "is 1000000; it must be a whole number from 1 to 1024"),
        (TEXT + "vocab_size", 700, None),
        (TEXT + "hidden_act", "evil", "is 'evil'; it must be silu or"),
        (TEXT + "rms_norm_eps", 1e300, "is 1e+300; it must be a number from 1e-12 to 1"),
        (TEXT + "rms_norm_eps", -1e-6, "is -1e-06; it must be a number"),
        (TEXT + "max_position_embeddings", 0, "is 0; it must be a whole number"),
        (TEXT + "use_sliding_window", True, "is true; it must be false"),
        (TEXT + "layer_types", ["sliding_attention"], "has a value that must be full_attention"),
        (TEXT + "rope_parameters.rope_theta", 0, "is 0; it must be a number from 1 to"),
        (TEXT + "rope_parameters.rope_type", "yarn", "is 'yarn'; it must be default or mrope"),
        (TEXT + "rope_parameters.mrope_section", [4, 6, 7], "is [4, 6, 7]; it must add up to 16"),
        (TEXT + "rope_parameters.mrope_section", [16], "must be a list of 3 values"),
        (TEXT + "rope_parameters", None, "rope_parameters is null"),
        (TEXT + "eos_token_id", 768, "must be a whole number from 0 to 767"),
        (VISION + "patch_size", 0, "is 0; it must be a whole number from 1 to 256"),
        (VISION + "patch_size", [14, 14], "is [14, 14]; it must be a whole number"),
        (VISION + "temporal_patch_size", 0, "is 0; it must be a whole number"),
        (VISION + "spatial_merge_size", -2, "is -2; it must be a whole number"),
        (VISION + "num_heads", 64, "is 64; it must divide the tower's width, 128, by a multiple of 4"),
        (VISION + "mlp_ratio", 0.5, "is 0.5; it must be a whole number"),
        (VISION + "hidden_size", 128, "is 128; it must be the language model's, 192"),
        (VISION + "in_channels", 4, "is 4; it must be a whole number from 3 to 3"),
        ("vision_config", "none", "vision_config is 'none'; it must be a JSON object"),
        ("video_token_id", 768, "is 768; it must be a whole number from 0 to 767"),
        ("tie_word_embeddings", "yes", "is 'yes'; it must be true or false"),
        ("model_type", "llama", "model_type is 'llama'; vidqa runs Qwen2-VL (qwen2_vl)"),
        ("quantization_config", {"load_in_4bit": 1}, "load_in_4bit is 1; it must be true or false"),
        ("quantization_config", {"quant_method": "bitsandbytes"}, "load_in_4bit is false; it must be true, or"),
        ("quantization_config", {"load_in_8bit": True, "llm_int8_threshold": "x"}, "llm_int8_threshold is 'x'"),
        ("quantization_config", {"load_in_8bit": True}, "says bitsandbytes, and no tensor is quantized"),
    ],
)  # fmt: skip
def test_invalid_value_in_config_json(folder: Path, key: str, value: Any, must: str | None) -> None:
    set_value(folder, "config.json", key, value)
    for local in (True, False):
        message = error_of(folder, local=local)
        assert message.startswith(f"{folder / 'config.json'}: ")
        assert must is None or (key.rsplit(".", 1)[-1] in message and must in message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_not_json(folder: Path, value: float) -> None:
    set_value(folder, "config.json", TEXT + "rms_norm_eps", value)
    assert "is not a JSON number" in error_of(folder)


def test_keys_without_a_rule_are_dropped(folder: Path) -> None:
    evil = {"auto_map": {"AutoConfig": "a.B"}, "torch_dtype": "evil", "transformers_weights": "/etc/x"}
    for key, value in evil.items():
        set_value(folder, "config.json", key, value)
    set_value(folder, "tokenizer_config.json", "tokenizer_class", "os.system")
    set_value(folder, "generation_config.json", "temperature", -1)
    (checkpoint,) = find_checkpoints(str(folder), local=True)
    assert checkpoint.spec == read_spec(QWEN2_DEMO)
    loaded = load_model(folder, torch.device("cpu"), "fp32", "fp32", Placement())
    assert loaded.stop_ids == {754, 756}


@pytest.mark.parametrize(
    ("file", "key", "value", "must"),
    [
        ("generation_config.json", "eos_token_id", [756, -1], "eos_token_id is [756, -1]; it has a value that must be"),
        ("generation_config.json", "eos_token_id", "end", "eos_token_id is 'end'"),
        ("video_preprocessor_config.json", "size.longest_edge", 0, "size.longest_edge is 0; it must be a whole number"),
        ("video_preprocessor_config.json", "size.shortest_edge", 20000, "is 20000; it must not be above max_pixels"),
        ("video_preprocessor_config.json", "max_frames", 3, "min_frames is 4; it must not be above max_frames, 3"),
        ("video_preprocessor_config.json", "fps", 0, "fps is 0; it must be a number from 0.001 to 1000"),
        ("tokenizer_config.json", "eos_token", "<end>", "eos_token is '<end>'; it must be a token of tokenizer.json"),
        ("tokenizer_config.json", "pad_token", {"content": 7}, "pad_token.content is 7; it must be a text"),
        ("tokenizer.json", "model.type", "WordPiece", "model.type is 'WordPiece'; it must be BPE"),
        ("tokenizer.json", "model.vocab.a", 10**9, "model.vocab['a'] is 1000000000; it must be a whole number below"),
        ("tokenizer.json", "added_tokens.0.id", 768, "added_tokens[0].id is 768; it must be a whole number"),
        ("tokenizer.json", "added_tokens.0.content", "", "added_tokens[0].content is ''; it must be a text"),
        ("tokenizer.json", "decoder.type", "Replace", "decoder.type is 'Replace'; it must be one of ByteLevel"),
        ("tokenizer.json", "normalizer", {"type": "Replace"}, "normalizer.type is 'Replace'"),
        (
            "tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": [{"type": "Sequence"}]},
            "normalizer.normalizers[0].type is 'Sequence'",
        ),
        (
            "tokenizer.json", "pre_tokenizer.pretokenizers.0.pattern", {"Regex": "(a+)+$"},
            "pre_tokenizer.pretokenizers[0].pattern is '(a+)+$'; vidqa runs known patterns only",
        ),
    ],
)  # fmt: skip
def test_invalid_value_in_another_file(folder: Path, file: str, key: str, value: Any, must: str) -> None:
    set_value(folder, file, key, value)
    message = error_of(folder)
    assert str(folder / file) in message and must in message


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "model.safetensors", "config.json"])
def test_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    message = error_of(folder)
    assert str(folder) in message and (file in message or "has no chat template" in message)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[1]", "{", '{"a": 1', "\ud800", '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_invalid_json(folder: Path, file: str, content: str) -> None:
    (folder / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert str(folder / file) in error_of(folder)


@pytest.mark.parametrize(
    ("file", "limit"),
    [("config.json", "4.0 MiB"), ("tokenizer.json", "48.0 MiB"), ("chat_template.jinja", "256.0 KiB")],
)
def test_endless_file_is_not_read(folder: Path, file: str, limit: str) -> None:
    with (folder / file).open("r+b") as opened:
        opened.truncate(2**36)
    assert f"{file} has 64.0 GiB; at most {limit} are read" in error_of(folder)
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    assert f"{file} is not a regular file" in error_of(folder)


def change_weight(**values: Any) -> Any:
    return lambda header: header["model.layers.0.mlp.up_proj.weight"].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change_weight(dtype="F128"), r"up_proj\.weight\.dtype is 'F128'"),
        (change_weight(shape=[512, -192]), r"up_proj\.weight\.shape is \[512, -192\]"),
        (change_weight(shape=[2**40, 2**40]), r"has 196608 bytes instead of 2\.4"),
        (change_weight(data_offsets=[0, 196608]), r"begins at byte 0 instead of"),
        (change_weight(data_offsets=[2**45, 2**45 + 196608]), "begins at byte"),
        (change_weight(shape=[192, 512]), r"BF16 \[192, 512\]; config\.json calls for \[512, 192\]"),
        (change_weight(dtype="I16"), r"is I16 \[512, 192\]; config\.json calls for"),
        (lambda header: header.pop("visual.merger.mlp.2.bias"), "the file has|begins at byte"),
        (
            lambda header: header.update(x=header.pop("model.norm.weight")),
            r"no tensor model\.language_model\.norm\.weight",
        ),
        (lambda header: header.update(x=7), "its header has 7 for 'x'"),
    ],
)
def test_invalid_tensor_in_a_header(folder: Path, edit: Any, message: str) -> None:
    edit_header(folder, edit)
    for local in (True, False):
        assert re.search(message, error_of(folder, local=local))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_truncated_weights(folder: Path, share: float) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(share * len(data))])
    assert "model.safetensors is no whole safetensors file: " in error_of(folder)


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/etc/m.safetensors", "a/b.safetensors", "m.bin", ".safetensors", 7]
)
def test_shard_outside_the_folder(folder: Path, shard: Any) -> None:
    (folder / "model.safetensors").rename(folder.parent / "m.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"weight_map['model.norm.weight'] is {shard!r}; it must be" in error_of(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "shard-00000-model-00000-of-00001.safetensors"])
def test_other_weights_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    assert name in error_of(folder) and "whole models" in error_of(folder)


def test_missing_weights_are_a_missing_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelMissing, match=r"there is no model\.safetensors"):
        find_checkpoints(str(folder), local=True)


@pytest.mark.parametrize(
    ("command", "file"),
    [(["ask", CLIP, "what?"], "config.json"), (["plan", CLIP], "config.json"), (["ask", CLIP, "?"], "tokenizer.json")],
)
def test_commands_name_the_file(
    folder: Path, command: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if file == "tokenizer.json":
        tokens = json.loads((folder / file).read_text())["added_tokens"]
        set_value(folder, file, "added_tokens", [*tokens, tokens[1] | {"id": 755, "content": " "}])
    else:
        set_value(folder, file, "vision_config.patch_size", 0)
    assert run([*command, "--model", str(folder), "--device", "cpu"]) == ExitCode.FAILED
    message = " ".join(capsys.readouterr().err.split())
    assert file in message
    assert "unexpected" not in message


def test_tensor_shapes_are_those_of_transformers() -> None:
    plain = pair("2B")
    state = {name: tuple(tensor.shape) for name, tensor in plain.oracle.state_dict().items()}
    assert dict(tensor_shapes(plain.ours.spec)) == state
    demo: Any = Qwen2VLForConditionalGeneration.from_pretrained(QWEN2_DEMO)
    state = {name: tuple(tensor.shape) for name, tensor in demo.state_dict().items() if name != "lm_head.weight"}
    assert dict(tensor_shapes(read_spec(QWEN2_DEMO))) == state


def test_configuration_is_that_of_transformers() -> None:
    ours = load_model(QWEN2_DEMO, torch.device("cpu"), "fp32", "fp32", Placement()).model.model.config.to_dict()
    theirs: Any = Qwen2VLForConditionalGeneration.from_pretrained(QWEN2_DEMO).config.to_dict()
    for part in ("text_config", "vision_config"):
        other = ("dtype", "eos_token_id", "max_window_layers", "tie_word_embeddings")
        expected = {key: value for key, value in theirs[part].items() if key not in other}
        assert {key: ours[part][key] for key in expected} == expected
    assert ours["text_config"]["eos_token_id"] == [theirs["text_config"]["eos_token_id"]]


def test_checks_do_not_import_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom vidqa.models.registry import find_checkpoints\n"
        f"find_checkpoints({str(folder)!r}, local=True)\n"
        "assert not {'torch', 'transformers', 'jinja2', 'numpy', 'av'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("dtype", "name"), [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")])
def test_the_stored_precision_is_that_of_the_files(tmp_path: Path, dtype: str, name: str) -> None:
    folder = copy_demo(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    small = "model.layers.0.input_layernorm.weight"
    changed = {key: weight.to(getattr(torch, dtype)) for key, weight in weights.items()} | {small: weights[small]}
    save_file(changed, folder / "model.safetensors")  # a norm in bf16 does not count
    (found,) = find_checkpoints(str(folder), local=True)
    assert found.spec.stored_dtype == name
