"""A second family from one folder runs through plan, ask, caption and replay; transformers' decoder is the oracle."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planner.plan_builders import made_run_config
from tests.planner.test_replay import run_phases
from tests.replay import replayed
from vidqa.cli.main import run
from vidqa.config import EngineConfig
from vidqa.engine.session import Session
from vidqa.events import Answered, Event
from vidqa.models import families, family, registry
from vidqa.models.hub import demo_folder
from vidqa.models.loader import load_model
from vidqa.planner.memory_model import tensor_bytes
from vidqa.types import Answer, Placement, Request

CLIP = str(Path(__file__).parents[2] / "assets/demo.mp4")
SIZES = {
    "layers": 3, "hidden": 96, "intermediate": 160, "heads": 4, "kv_heads": 2, "head_dim": 32, "vocabulary": 768,
    "video_token": 767, "width": 48, "eos_token_id": 756,
}  # fmt: skip
MIB = 2**20


@pytest.fixture(autouse=True)
def second_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the folder beside those of the package."""
    found = (family.families, registry.released, registry.short_names, registry.runnable_models)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "folder")])
    for one in found:
        one.cache_clear()
    yield
    monkeypatch.undo()
    for one in found:
        one.cache_clear()


@pytest.fixture
def checkpoint(tmp_path: Path, second_family: None) -> Path:
    """A checkpoint of random weights with the demo's tokenizer."""
    folder = tmp_path / "toy"
    folder.mkdir()
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder)
    demo = json.loads((demo_folder() / "config.json").read_text())
    numbers = SIZES | {"video_token": demo["video_token_id"]}
    (found,) = [one for one in family.families() if one.TITLE == "Toy-VL"]
    config_class, model_class = found.load_runtime().hf_classes()
    torch.manual_seed(3)
    model: Any = model_class(config_class(**numbers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy_vl", **numbers}))
    return folder


def ask(config: EngineConfig, *requests: Request) -> list[Answer]:
    """Answers of one session."""
    with Session(config) as session:
        return [answer_of(list(session.ask(request))) for request in requests]


def answer_of(events: list[Event]) -> Answer:
    """The last event's answer."""
    assert isinstance(events[-1], Answered)
    return events[-1].answer


def oracle_text(folder: Path, answer: Answer, question: str, tokens: int) -> str:
    """Greedy text by transformers' decoder over the whole prompt at each step, its positions counted here."""
    from vidqa.engine.prompt import build_prompt, slice_times
    from vidqa.video.reader import open_video

    loaded = load_model(folder, torch.device("cpu"), "fp32", "fp32", Placement())
    model, tokenizer, plan = loaded.model, loaded.tokenizer, answer.plan
    config = plan.run_config
    prompt = build_prompt(loaded, question, None)
    with open_video(CLIP, isolated=False) as reader:
        frames = [
            model.family.resize_frame(one.rgb, config.height, config.width) for one in reader.frames(plan.indices)
        ]
    tower: Any = model.visual
    with torch.no_grad():
        patches = model.family.to_patches(torch.stack(frames), model.spec)
        hidden = torch.nn.functional.gelu(tower.embed(patches)).view(len(frames) // 2, -1, 4 * SIZES["width"])
        seen, added = tower.merger(hidden), tower.deep(hidden)
    table = model.language_model.embed_tokens.weight
    rows, columns = config.height // 28, config.width // 28
    embeddings, positions, masks, place = list[Tensor](), list[Tensor](), list[bool](), 0

    def text(ids: list[int]) -> None:
        nonlocal place
        embeddings.append(table[ids])
        positions.append((torch.arange(len(ids)) + place).expand(3, -1))
        masks.extend([False] * len(ids))
        place += len(ids)

    text(list(prompt.head))
    for number, seconds in enumerate(slice_times(plan, model.spec)):
        text(tokenizer(f"<{seconds:.1f} seconds>", add_special_tokens=False)["input_ids"])
        embeddings.append(seen[number])
        grid = torch.tensor([(0, row, column) for row in range(rows) for column in range(columns)])
        positions.append(grid.T + place)
        masks.extend([True] * rows * columns)
        place += max(rows, columns, 1)
    text(list(prompt.tail))
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(tokens):
            out = model.language_model(
                inputs_embeds=torch.cat(embeddings)[None], position_ids=torch.cat(positions, dim=1)[:, None],
                visual_pos_masks=torch.tensor([masks]), deepstack_visual_embeds=[added.flatten(0, 1)], use_cache=False,
            )  # fmt: skip
            ids.append(int(model.model.lm_head(out.last_hidden_state[0, -1]).argmax()))
            if ids[-1] in loaded.stop_ids:
                break
            text(ids[-1:])
    decoded: str = tokenizer.decode(ids, skip_special_tokens=True)
    return decoded


@pytest.mark.parametrize("offloaded", [False, True])
def test_answers_equal_transformers(checkpoint: Path, offloaded: bool) -> None:
    placement = Placement(vision_offloaded=offloaded)
    config = EngineConfig(
        model=str(checkpoint), device="cpu", vision_chunk=3, prefill_chunk=32, weights="fp32", placement=placement
    )
    questions = ("what happens?", "what color is it?")
    answers = ask(config, *(Request(CLIP, question, max_tokens=12) for question in questions))
    for question, answer in zip(questions, answers, strict=True):
        assert answer.plan.prompt_tokens > answer.plan.visual_tokens + 8 * 4  # a time before each slice
        assert answer.text == oracle_text(checkpoint, answer, question, 12).strip()


def test_plan_ask_and_caption_by_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", CLIP, "--model", str(checkpoint), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["plan"]
    assert planned["model"] == str(checkpoint)
    assert run(["ask", CLIP, "what happens?", "--model", str(checkpoint), "--json", "--max-tokens", "8"]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert answered["plan"]["frames"] == planned["frames"]
    assert answered["plan"]["prompt_tokens"] <= planned["prompt_tokens"]
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(CLIP, clips / name)
    asked = ["--prompt", "what happens?", "--max-tokens", "8", "--batch", "2"]
    assert run(["caption", str(clips), "--model", str(checkpoint), *asked]) == 0
    texts = [(clips / name).read_text().strip() for name in ("a.txt", "b.txt")]
    assert texts == [answered["answer"]] * 2


def test_the_plan_holds_what_a_replay_takes(checkpoint: Path) -> None:
    (found,) = registry.find_checkpoints(str(checkpoint), local=False)
    candidates = [
        made_run_config(frames=frames, height=252, width=448, vision_chunk=4, prefill_chunk=256) for frames in (8, 16)
    ]
    with replayed(found.spec, "bf16") as replay:
        for candidate in candidates:
            peaks, planned = run_phases(replay, candidate, found.spec), tensor_bytes(found.spec, candidate)
            for phase, peak in peaks.items():
                assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, phase
