"""A checkpoint's tokenizer.json, special tokens, stop tokens and chat template, read and checked. No torch.

Of tokenizer.json only components and regular expressions of known families are accepted: the tokenizers library runs
any pattern without a time limit, in native code that Ctrl-C does not interrupt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vidqa.errors import ModelError
from vidqa.models.config_validation import (
    Integer,
    JsonSection,
    ListOf,
    Number,
    OneOf,
    Rule,
    Text,
    Values,
    quoted,
    read_object,
    read_text,
    token_ids,
)
from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_MAX_TOKENIZER_BYTES = 48 * 2**20  # a vocabulary of 152,000 takes 7 MB
_MAX_TEMPLATE_BYTES = 2**18
_TOKEN = Text(512, None)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_REMEDY = "Use the chat template of the model's *instruct* release."
_TOKENIZER_REMEDY = "Use the tokenizer.json of the release that the model comes from."
# By component of tokenizer.json: the accepted types, and the key of the members of a sequence.
_COMPONENTS = {
    "normalizer": (("NFC", "NFD", "NFKC", "NFKD"), "normalizers"),
    "pre_tokenizer": (("ByteLevel", "Split"), "pretokenizers"),
    "decoder": (("ByteLevel",), "decoders"),
    "post_processor": (("ByteLevel", "TemplateProcessing"), "processors"),
}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Checked contents of the files that make a prompt and end an answer.

    `added_tokens` are the ids of the tokens beside the vocabulary, `special_tokens` those that a chat template may name
    (`eos_token` etc.). `template_source` says where the template was read, for errors.
    """

    tokenizer: Path
    added_tokens: Mapping[str, int]
    special_tokens: Mapping[str, str]
    chat_template: str
    template_source: str
    stop_ids: frozenset[int]


def read_tokenizer_files(folder: Path, spec: ModelSpec) -> TokenizerFiles:
    """Read and check all files; raise ModelError.

    Unchanged files are read once: a question checks its checkpoint first and loads it later.
    """
    return _read(folder, spec, tuple(_version(folder / name) for name in _FILES))


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=1)
def _read(folder: Path, spec: ModelSpec, versions: tuple[object, ...]) -> TokenizerFiles:
    config = _read_optional(folder / "tokenizer_config.json")
    ids, added = _tokens(folder / "tokenizer.json", spec)
    special = _special_tokens(config, ids)
    template, source = _chat_template(folder, config)
    generation = _read_optional(folder / "generation_config.json")
    stops = frozenset(token_ids(generation, "eos_token_id", spec.vocabulary) or spec.stop_tokens)
    if eos := special.get("eos_token"):
        stops |= {ids[eos]}
    return TokenizerFiles(folder / "tokenizer.json", added, special, template, source, stops)


def _read_optional(path: Path) -> Values:
    return Values(path, "", read_object(path) if path.exists() else {})


def _tokens(path: Path, spec: ModelSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of all tokens and of the added ones; raise ModelError for unknown components and invalid ids."""
    if not path.exists():
        raise ModelError(f"{path.parent} has no tokenizer.json.", _TOKENIZER_REMEDY)
    content = Values(path, "", read_object(path, _MAX_TOKENIZER_BYTES))
    model = content.inner("model")
    model.checked({"type": OneOf(("BPE",), "BPE"), "dropout": Number(0.0, 0.0, None)})
    for key in _COMPONENTS:
        _check_component(content, key, family_of(spec).TOKENIZER_PATTERNS)
    added = _added_tokens(content, spec.vocabulary)
    ids = _vocabulary(model, spec.vocabulary) | added
    if spec.video_token not in ids.values():
        raise ModelError(f"{path} has no token {spec.video_token}, config.json's video_token_id.", _TOKENIZER_REMEDY)
    return ids, added


def _check_component(content: Values, key: str, patterns: tuple[str, ...]) -> None:
    """Check that a component, or every member of a sequence, is of an accepted type."""
    if content.values.get(key) is None:
        return
    component = content.inner(key)
    types, members = _COMPONENTS[key]
    if component.values.get("type") != "Sequence":
        _check_member(component, types, patterns)
        return
    for index, member in enumerate(component.take(members, ListOf(JsonSection(), 0, 16))):
        _check_member(Values(component.path, f"{component.section}.{members}[{index}]", member), types, patterns)


def _check_member(member: Values, types: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    kind = member.values.get("type")
    if kind not in types:
        member.refuse("type", kind, f"must be one of {', '.join(types)}")
    if kind == "Split":
        pattern = member.inner("pattern")
        regex = pattern.values.get("Regex")
        if "String" in pattern.values or regex not in patterns:
            what = f"{member.path}: {pattern.section} is {quoted(regex)}; vidqa runs known patterns only."
            raise ModelError(what, _TOKENIZER_REMEDY)


def _vocabulary(model: Values, size: int) -> dict[str, int]:
    """Return `model.vocab`, whose ids must be rows of the embedding table."""
    ids: dict[str, int] = model.take("vocab", JsonSection())
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < size:
            model.refuse(f"vocab[{quoted(token)}]", number, f"must be a whole number below vocab_size, {size}")
    return ids


def _added_tokens(content: Values, vocabulary: int) -> dict[str, int]:
    rules: dict[str, Rule] = {"id": Integer(0, vocabulary - 1), "content": Text(_TOKEN.max_length)}
    entries = content.take("added_tokens", ListOf(JsonSection(), 0, 2**14, ()))
    added = [Values(content.path, f"added_tokens[{index}]", one).checked(rules) for index, one in enumerate(entries)]
    return {one["content"]: one["id"] for one in added}


def _special_tokens(config: Values, ids: Mapping[str, int]) -> dict[str, str]:
    """Return the named tokens of tokenizer_config.json; each is a string, or an object with `content`."""
    special = {}
    for key in _SPECIAL_TOKENS:
        if isinstance(config.values.get(key), dict):
            token = config.inner(key).take("content", _TOKEN)
        else:
            token = config.take(key, _TOKEN)
        if token is None:
            continue
        if token not in ids:
            config.refuse(key, token, "must be a token of tokenizer.json")
        special[key] = token
    return special


def _chat_template(folder: Path, config: Values) -> tuple[str, str]:
    """Return the template and its source: its own file, else the tokenizer's config, else chat_template.json."""
    own, older, rule = folder / "chat_template.jinja", folder / "chat_template.json", Text(_MAX_TEMPLATE_BYTES)
    if own.exists():
        return read_text(own, _MAX_TEMPLATE_BYTES), str(own)
    if isinstance(config.values.get("chat_template"), list):
        for index, entry in enumerate(config.take("chat_template", ListOf(JsonSection(), 1, 64))):
            if entry.get("name") == "default":
                values = Values(config.path, f"chat_template[{index}]", entry)
                return values.take("template", rule), f"{config.path}: chat_template"
    elif config.values.get("chat_template") is not None:
        return config.take("chat_template", rule), f"{config.path}: chat_template"
    if older.exists():
        return Values(older, "", read_object(older)).take("chat_template", rule), str(older)
    raise ModelError(f"The model in {folder} has no chat template.", _TEMPLATE_REMEDY)
