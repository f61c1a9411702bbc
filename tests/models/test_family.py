"""Model families: nothing outside models/families names one, and every family is complete."""

import io
import re
import tokenize
from pathlib import Path

import pytest

import vidqa
from vidqa.models.checkpoint import download_bytes, suggested_model
from vidqa.models.family import families, family_of, find_family, planned_types, runnable_types
from vidqa.models.registry import released, short_names

PACKAGE = Path(vidqa.__file__).parent
FAMILIES = PACKAGE / "models" / "families"
FAMILY_NAMES = re.compile("|".join(["qwen", *(path.parent.name for path in FAMILIES.glob("*/__init__.py"))]), re.I)
SOURCE_OF_RULES = '"qwen-vl-utils"'  # a library, named as the source of bounds


def test_families_are_named_only_in_comments_and_texts() -> None:
    """Outside their folders a family is no identifier and no value: its name is in texts of several words."""
    paths = [path for path in PACKAGE.rglob("*.py") if FAMILIES not in path.parents]
    assert len(paths) > 100
    named = []
    for path in paths:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
            text = token.type == tokenize.COMMENT or " " in token.string or token.string == SOURCE_OF_RULES
            if FAMILY_NAMES.search(token.string) and not text:
                named.append(f"{path.relative_to(PACKAGE)}:{token.start[0]}: {token.string}")
    assert not named


def test_types_of_families_are_distinct() -> None:
    types = planned_types()
    assert len(set(types)) == len(types)
    assert set(runnable_types()) <= set(types)
    assert find_family("bert") is None and find_family(None) is None and find_family(["qwen2_vl"]) is None


@pytest.mark.parametrize("repository", released())
def test_released_checkpoints_belong_to_their_family(repository: str) -> None:
    spec = released()[repository]
    assert family_of(spec).RELEASED[repository] == spec
    assert set(short_names().values()) <= set(released())


def test_runtimes_match_their_family() -> None:
    for family in families():
        runtime = family.load_runtime()
        config_class, model_class = runtime.hf_classes()
        assert getattr(config_class, "model_type") in family.RUNNABLE_TYPES  # noqa: B009 - hf_classes returns plain types
        assert runtime.LANGUAGE_MODEL and runtime.VISION_TOWER and model_class.__module__.startswith("transformers")


def test_the_smallest_model_is_suggested_with_the_size_of_its_download() -> None:
    assert suggested_model() == min(short_names().values(), key=download_bytes)
    assert download_bytes("Qwen/Qwen2-VL-2B-Instruct") == 4_417_971_200  # of its safetensors
