"""Model families: nothing outside models/families names one, and every family is complete."""

import re
from pathlib import Path

import pytest

import vidqa
from vidqa.models.checkpoint import download_bytes, suggested_model
from vidqa.models.family import families, family_of, find_family, planned_types, runnable_types
from vidqa.models.registry import released, short_names

PACKAGE = Path(vidqa.__file__).parent
FAMILY_NAMES = re.compile(r"qwen2_vl|qwen2_5_vl|qwen3_vl|Qwen2VL|Qwen2_5_VL|Qwen3VL")
# Files that still name a family. Remove an entry together with the name in its file.
ALLOWED = {"cli/models.py"}  # the model_type of the demo


def test_no_other_module_names_a_family() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "models" / "families" not in path.parents]
    assert len(paths) > 100
    named = {str(path.relative_to(PACKAGE)) for path in paths if FAMILY_NAMES.search(path.read_text("utf-8"))}
    assert named <= ALLOWED


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
