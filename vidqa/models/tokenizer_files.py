"""The text side of a checkpoint: tokenizer.json, its special tokens, the tokens that end an answer, the chat template.

Of tokenizer.json only parts that the families' tokenizers are made of are accepted, and only known regular expressions:
the tokenizers library runs any pattern, with no limit in time, in native code that Ctrl-C does not reach. Knows files;
knows no tokenizer library and no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vidqa.errors import ModelError
from vidqa.models.family import family_of
from vidqa.models.json_rules import (
    Integer,
    JsonSection,
    ListOf,
    Number,
    OneOf,
    Rule,
    Text,
    Values,
    read_object,
    read_text,
    shown,
    token_ids,
)
from vidqa.models.spec import ModelSpec

_TOKENIZER_BYTES = 48 * 2**20  # a vocabulary of 152,000 takes 7 MB
_TEMPLATE_BYTES = 2**18
_LONGEST_TOKEN = 512
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_REMEDY = "Use the chat template of the model's *instruct* release."
_TOKENIZER_REMEDY = "Use the tokenizer.json of the release that the model comes from."

_PARTS = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("ByteLevel", "Split"),
    "decoder": ("ByteLevel",),
    "post_processor": ("ByteLevel", "TemplateProcessing"),
}
_INNER = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders",
    "post_processor": "processors",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextSide:
    """What is needed to make a prompt and to end an answer.

    `added` are the ids of the tokens beside the vocabulary, `special` the tokens that the chat template may name
    (`eos_token` and its like); `template_source` says where the template was read, for errors.
    """

    tokenizer: Path
    added: Mapping[str, int]
    special: Mapping[str, str]
    template: str
    template_source: str
    stop_ids: frozenset[int]


def read_text_side(folder: Path, spec: ModelSpec) -> TextSide:
    """Read and check all files of the text side; raises ModelError.

    The same unchanged files are read once: a question's checkpoint is checked first and loaded a little later.
    """
    return _read(folder, spec, tuple(_identity(folder / name) for name in _FILES))


_FILES = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=1)
def _read(folder: Path, spec: ModelSpec, identities: tuple[object, ...]) -> TextSide:
    config = _optional(folder / "tokenizer_config.json")
    ids, added = _tokens(folder / "tokenizer.json", spec)
    special = _special(config, ids)
    template, source = _template(folder, config)
    stops = _stop_ids(folder, spec)
    if eos := special.get("eos_token"):
        stops |= {ids[eos]}
    return TextSide(folder / "tokenizer.json", added, special, template, source, stops)


def _optional(path: Path) -> Values:
    return Values(path, "", read_object(path) if path.exists() else {})


def _tokens(path: Path, spec: ModelSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by text of every token, and of the added ones.

    Raises ModelError where a part is not known, or an id has no row in the model.
    """
    if not path.exists():
        raise ModelError(f"{path.parent} has no tokenizer.json.", _TOKENIZER_REMEDY)
    content = Values(path, "", read_object(path, _TOKENIZER_BYTES))
    model = content.inner("model")
    model.checked({"type": OneOf(("BPE",), "BPE"), "dropout": Number(0.0, 0.0, None)})
    for key in _PARTS:
        _check_part(content, key, family_of(spec).TOKENIZER_PATTERNS)
    added = _added(content, spec.vocabulary)
    ids = _checked_ids(model, spec.vocabulary) | added
    if spec.video_token not in ids.values():
        raise ModelError(f"{path} has no token {spec.video_token}, config.json's video_token_id.", _TOKENIZER_REMEDY)
    return ids, added


def _check_part(content: Values, part: str, patterns: tuple[str, ...]) -> None:
    """A component, or every member of a sequence of them, must be of a known type."""
    if content.values.get(part) is None:
        return
    whole = content.inner(part)
    if whole.values.get("type") != "Sequence":
        _check_member(whole, part, patterns)
        return
    key = _INNER[part]
    for place, member in enumerate(whole.take(key, ListOf(JsonSection(), 0, 16))):
        _check_member(Values(whole.path, f"{whole.section}.{key}[{place}]", member), part, patterns)


def _check_member(member: Values, part: str, patterns: tuple[str, ...]) -> None:
    kind = member.values.get("type")
    if kind not in _PARTS[part]:
        member.refuse("type", kind, f"must be one of {', '.join(_PARTS[part])}")
    if kind == "Split":
        pattern = member.inner("pattern")
        regex = pattern.values.get("Regex")
        if "String" in pattern.values or regex not in patterns:
            raise ModelError(
                f"{member.path}: {pattern.section} is {shown(regex)}; vidqa runs known patterns only.",
                _TOKENIZER_REMEDY,
            )


def _checked_ids(model: Values, vocabulary: int) -> dict[str, int]:
    """`model.vocab`, whose ids must be rows of the embedding table."""
    ids: dict[str, int] = model.take("vocab", JsonSection())
    for token, one in ids.items():
        if type(one) is not int or not 0 <= one < vocabulary:
            model.refuse(f"vocab[{shown(token)}]", one, f"must be a whole number below vocab_size, {vocabulary}")
    return ids


def _added(content: Values, vocabulary: int) -> dict[str, int]:
    rules: dict[str, Rule] = {"id": Integer(0, vocabulary - 1), "content": Text(_LONGEST_TOKEN)}
    added = content.take("added_tokens", ListOf(JsonSection(), 0, 2**14, ()))
    found = [Values(content.path, f"added_tokens[{place}]", one).checked(rules) for place, one in enumerate(added)]
    return {one["content"]: one["id"] for one in found}


def _special(config: Values, ids: Mapping[str, int]) -> dict[str, str]:
    """The named tokens of tokenizer_config.json: a text each, or an object with `content`."""
    special = {}
    for key in _SPECIAL:
        where = config.inner(key) if isinstance(config.values.get(key), dict) else config
        token = where.take(key if where is config else "content", Text(_LONGEST_TOKEN, None))
        if token is None:
            continue
        if token not in ids:
            config.refuse(key, token, "must be a token of tokenizer.json")
        special[key] = token
    return special


def _template(folder: Path, config: Values) -> tuple[str, str]:
    """The chat template and where it stood: in its own file, the tokenizer's config, or the processor's file."""
    own, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if own.exists():
        return read_text(own, _TEMPLATE_BYTES), str(own)
    rule = Text(_TEMPLATE_BYTES)
    if isinstance(config.values.get("chat_template"), list):
        named = config.take("chat_template", ListOf(JsonSection(), 1, 64))
        for place, one in enumerate(named):
            if one.get("name") == "default":
                where = Values(config.path, f"chat_template[{place}]", one)
                return where.take("template", rule), f"{config.path}: chat_template"
    elif config.values.get("chat_template") is not None:
        return config.take("chat_template", rule), f"{config.path}: chat_template"
    if older.exists():
        return Values(older, "", read_object(older)).take("chat_template", rule), str(older)
    raise ModelError(f"The model in {folder} has no chat template.", _TEMPLATE_REMEDY)


def _stop_ids(folder: Path, spec: ModelSpec) -> frozenset[int]:
    """What ends an answer: generation_config.json's tokens, else config.json's."""
    own = token_ids(_optional(folder / "generation_config.json"), "eos_token_id", spec.vocabulary)
    return frozenset(own or spec.stop_tokens)
