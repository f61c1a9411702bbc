"""What a model's folder says about the videos that it knows."""

import json
from pathlib import Path

import pytest

from demo_world.domain import training_domain
from tests.demos import QWEN2_DEMO
from vidqa.errors import ModelError
from vidqa.models.hub import demo_folder
from vidqa.models.training_domain import DOMAIN_FILE, read_domain


@pytest.mark.parametrize("folder", [demo_folder(), QWEN2_DEMO])
def test_every_demo_model_says_what_it_knows(folder: Path) -> None:
    assert json.loads((folder / DOMAIN_FILE).read_text()) == json.loads(json.dumps(training_domain()))
    domain = read_domain(folder)
    assert domain is not None and domain.knows == "drawn shapes" and len(domain.paints) == 4
    assert domain.exceeded(dict.fromkeys(domain.limits, 0.0)) is False
    assert domain.exceeded({**domain.limits, "roughness": domain.limits["roughness"] + 1}) is True


def test_another_model_knows_real_videos(tmp_path: Path) -> None:
    assert read_domain(tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("knows", ""), ("paints", [[1, 2]]), ("limits", {"roughness": 3}), ("limits", []), ("unlike_share", 2)],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / DOMAIN_FILE).write_text(json.dumps(training_domain() | {key: value}))
    with pytest.raises(ModelError, match=DOMAIN_FILE):
        read_domain(tmp_path)
