"""Copies of the demo checkpoint with one random change in a config, tokenizer file, header or template.

Changes are numbered; a number gives the same change on every machine.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.demos import QWEN2_DEMO

CONFIGS = ("config.json", "generation_config.json", "video_preprocessor_config.json", "tokenizer_config.json")
_DEEP = json.loads("[" * 900 + "]" * 900)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 64, 766, 768, 10**6, 2**31, 2**63, 10**30, 0.0, 0.5, -2.5, 1e308, 1e-320,
    float("nan"), float("inf"), "", "evil", "0", "\x1b[2J", "x" * 10_000, [], [0], [3, 3], ["a"], {}, {"a": 1}, _DEEP,
)  # fmt: skip
_EXTRA: tuple[tuple[str, Any], ...] = (
    ("auto_map", {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}),
    ("torch_dtype", "evil"), ("dtype", "float8"), ("transformers_weights", "../../etc/passwd"),
    ("architectures", ["Evil"]),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": "yes"}),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("quantization_config", {"quant_method": ["gptq"], "bits": -4}), ("quantization_config", "nf4"),
    ("quantization_config", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": [1]}),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}), ("pruned_heads", {"0": [0, 1]}), ("head_dim", 0),
    ("tokenizer_class", "os.system"), ("chat_template", [{"name": "default", "template": 7}]),
    ("chat_template", "{{ 1 // 0 }}"),
    ("temperature", -1.0), ("max_length", -5), ("watermarking_config", {"a": 1}), ("cache_implementation", "evil"),
    ("eos_token", {"content": None}), ("eos_token", "not there"), ("max_frames", -1),
    ("size", {"longest_edge": 10**18}),
)  # fmt: skip
_TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}", "{{ 10 ** (10 ** 8) }}", "{{ 'x' * 10**6 * 100 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{{ ''.__class__.__mro__ }}", "{{ raise_exception.__globals__ }}", "{{ messages.append(1) }}", "{{ nothing.here }}",
    "{% include 'config.json' %}", "{{ raise_exception('no \x1b[2J') }}", "{% generation %}", "{{ '%999999999d' % 1 }}",
    "{{ 'a'.center(10**9) }}", "{{ messages|tojson(indent=10**8) }}", "{{ cycler.__init__.__globals__.os }}", "",
    "{{ 1 / 0 }}",
    "{{ strftime_now('%Y' * 10**6) }}", "{{ dict.fromkeys(range(99999))|list|join('x' * 10**5) }}", "<|video_pad|>",
    "<|video_pad|><|video_pad|>", "{{ lipsum(n=99999) }}", "{{ messages[9].content }}", "{% break %}", "{{ \ud800 }}",
)  # fmt: skip


def copy_demo(folder: Path) -> Path:
    """Replace a folder with a copy of the demo checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(QWEN2_DEMO, folder))


def change(folder: Path, number: int) -> str:
    """Replace a folder with the demo checkpoint after change `number`; return a description."""
    rng = Random(number)
    copy_demo(folder)
    return rng.choice((_config, _config, _config, _tokenizer, _header, _header, _template, _file))(folder, rng)


def _edit(path: Path, edit: Callable[[Any], str]) -> str:
    content = json.loads(path.read_text())
    description = edit(content)
    path.write_text(json.dumps(content))
    return f"{path.name}: {description}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a value, of long containers only a few."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    keys = keys if len(keys) < 50 else [*keys[:3], *keys[-3:]]
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def _replace(content: Any, rng: Random) -> str:
    """Replace or delete a random value."""
    container, key = rng.choice(_places(content))
    if rng.random() < 0.1:
        del container[key]
        return f"without {key}"
    container[key] = value = rng.choice(_VALUES)
    return f"{key} = {str(value)[:60]}"


def _config(folder: Path, rng: Random) -> str:
    def edit(content: Any) -> str:
        if rng.random() < 0.25:
            key, value = rng.choice(_EXTRA)
            where = content.get("text_config", content) if rng.random() < 0.3 else content
            where[key] = value
            return f"{key} = {value}"
        return _replace(content, rng)

    return _edit(folder / rng.choice((*CONFIGS, "config.json", "config.json")), edit)


def _tokenizer(folder: Path, rng: Random) -> str:
    def edit(content: Any) -> str:
        kind = rng.randrange(4)
        if kind == 0:
            content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+$|(x|x)*y"}
        elif kind == 1:
            content["added_tokens"].append(
                content["added_tokens"][0] | {"id": rng.choice((0, 700, 10**9)), "content": " "}
            )
        elif kind == 2:
            content["padding"] = {
                "strategy": {"Fixed": 10**7}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "a",
            }  # fmt: skip
        else:
            return _replace(content, rng)
        return f"kind {kind}"

    return _edit(folder / "tokenizer.json", edit)


def _header(folder: Path, rng: Random) -> str:
    """Change the header, its length, or the bytes after it."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.randrange(7)
    if kind == 0:
        path.write_bytes(data[: rng.randrange(len(data))])
        return "safetensors: cut"
    if kind == 1:
        path.write_bytes(rng.choice((0, 1, length - 1, length + 1, 2**40, 2**63)).to_bytes(8, "little") + data[8:])
        return "safetensors: another length"
    if kind == 2:
        place = rng.randrange(8, len(data) - 64)
        path.write_bytes(data[:place] + rng.randbytes(64) + data[place + 64 :])
        return f"safetensors: bytes at {place}"
    if kind == 3:
        path.write_bytes(data + rng.randbytes(10))
        return "safetensors: a tail"
    name = rng.choice([key for key in header if key != "__metadata__"])
    if kind == 4:
        header[name[:-1] + rng.choice("xyz")] = header.pop(name)
    elif kind == 5:
        header[name]["shape"] = rng.choice(
            ([1], header[name]["shape"][::-1], [*header[name]["shape"], 1], [2**40, 2**40])
        )
    else:
        name = f"{name}: {_replace(header[name] if rng.random() < 0.7 else header, rng)}"
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
    return f"safetensors header {kind}: {name}"


def _template(folder: Path, rng: Random) -> str:
    path = folder / "chat_template.jinja"
    text, kind = path.read_text(), rng.randrange(4)
    place, other = sorted((rng.randrange(len(text)), rng.randrange(len(text))))
    hostile = rng.choice(_TEMPLATES)
    changed = (
        hostile,
        hostile + text,
        text[:place] + text[other:],
        text[:place] + text[place:other] * 2 + text[other:],
    )[kind]
    path.write_bytes(changed.encode("utf-8", "surrogatepass"))
    return f"template {kind}: {hostile[:60] if kind < 2 else (place, other)}"


def _file(folder: Path, rng: Random) -> str:
    """Remove, empty, truncate or garble a file, or replace it with a folder, a pipe or an endless link."""
    path = folder / rng.choice((*CONFIGS, "tokenizer.json", "chat_template.jinja", "model.safetensors"))
    kind = rng.choice(("gone", "empty", "cut", "garbled", "folder", "pipe", "endless", "deep", "index"))
    data = path.read_bytes()
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "garbled":
        places = [rng.randrange(len(data)) for _ in range(8)]
        path.write_bytes(
            bytes(rng.randrange(256) if place in places else byte for place, byte in enumerate(data[:50_000]))
        )
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "deep":
        path.write_bytes(b"[" * 200_000)
    elif kind == "index":
        path.write_bytes(data)
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        shard = rng.choice(("shard.safetensors", "../shard.safetensors", "/etc/passwd", 7, "nothing.safetensors"))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        return f"index: {shard}"
    return f"{path.name}: {kind}"
