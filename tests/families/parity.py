"""A tiny random checkpoint of a family, loaded by vidqa and by transformers, and the prompts of both."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families.cases import END, START, VIDEO_TOKEN, FamilyCase, Inputs, Video
from tests.planner.plan_builders import made_cpu, made_run_config, plan_of
from vidqa.config import EngineConfig
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import make_decode_runner
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import PromptTokens, build_prompt, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.sampler import Sampler
from vidqa.engine.session import Session
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext
from vidqa.events import Answered
from vidqa.models.attention.selector import make_kernel
from vidqa.models.hub import demo_folder
from vidqa.models.loader import Loaded, load_model
from vidqa.models.spec import ModelSpec
from vidqa.types import Answer, Frame, Placement, Plan, Request, Turn
from vidqa.utils.generators import finished
from vidqa.video.reader import open_video

CPU = torch.device("cpu")
CLIP = str(Path(__file__).parents[2] / "assets/demo.mp4")
TOKENIZER = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
QUESTION, SYSTEM = "what happens?", "see: the red circle"
TOKENS = {
    "image_token_id": 766,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


@dataclass(frozen=True)
class Pair:
    """The same weights twice: as vidqa loads them, and transformers' model with its processor."""

    case: FamilyCase
    folder: Path
    loaded: Loaded
    oracle: Any
    processor: Any

    @property
    def spec(self) -> ModelSpec:
        """The spec that vidqa read."""
        return self.loaded.model.spec


def write_checkpoint(case: FamilyCase, layout: str, folder: Path) -> Path:
    """Write a checkpoint of random weights, large enough that logits differ, with the demo's tokenizer."""
    folder.mkdir(exist_ok=True)
    spec = case.specs[layout]
    for name in TOKENIZER:
        shutil.copy(demo_folder() / name, folder)
    runtime: Any = case.module.load_runtime()
    _, model_class = runtime.hf_classes()
    torch.manual_seed(7)
    model = model_class(runtime.hf_config(spec)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | TOKENS
    config["text_config"]["eos_token_id"] = 756
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def copy_with(folder: Path, target: Path, key: str = "", value: Any = None) -> Path:
    """Copy a checkpoint, with one value of config.json changed; the key is dotted."""
    copy = Path(shutil.copytree(folder, target / "model"))
    if key:
        config = json.loads((copy / "config.json").read_text())
        *sections, name = key.split(".")
        values = config
        for section in sections:
            values = values[section]
        values[name] = value
        (copy / "config.json").write_text(json.dumps(config))
    return copy


def load_pair(case: FamilyCase, folder: Path) -> Pair:
    """Load a checkpoint both ways in float32."""
    _, model_class = case.module.load_runtime().hf_classes()
    oracle = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    loaded = load_model(folder, CPU, "fp32", "fp32", Placement())
    return Pair(case, folder, loaded, oracle, case.processor(loaded.tokenizer))


class MadeFrames:
    """A reader of random frames."""

    notes = ()

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        shape = (len(plan.indices), plan.run_config.height, plan.run_config.width, 3)
        self.pictures = np.random.default_rng(3).integers(0, 255, shape).astype(np.uint8)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for place, index in enumerate(indices):
            yield Frame(index, self._plan.timestamps_seconds[place], self.pictures[place])

    def check_coverage(self, indices: Sequence[int]) -> None:
        """All were delivered."""


def made_plan(spec: ModelSpec, video: Video, **fields: Any) -> Plan:
    """A plan in float32 of a video's frames."""
    times, (height, width) = video
    precisions = {"weights": "fp32", "kv": "fp32", "dtype": "fp32"}
    sizes = {"frames": len(times), "height": height, "width": width, "max_tokens": 64, "text_tokens": 160}
    return replace(plan_of(made_run_config(**(precisions | sizes | fields)), spec), timestamps_seconds=tuple(times))


@dataclass(frozen=True)
class Ran:
    """A prompt that vidqa ran: its logits (1, vocabulary), the runner, ids and positions (3, n) of its rows."""

    logits: Tensor
    runner: PromptRunner
    ids: list[int]
    positions: Tensor


def run_prompt(pair: Pair, plan: Plan, system: str | None = SYSTEM, attention: str = "flash") -> Ran:
    """Run a prompt over random frames through the engine's vision and prefill."""
    loaded, model = pair.loaded, pair.loaded.model
    layout = layout_of(build_prompt(loaded, QUESTION, system), plan, loaded)
    tracker = Tracker(made_cpu(bf16=False))
    stages = StageContext(tracker, Callbacks(lambda: False), PhaseTimer("test"))
    prefill = Prefill(model, make_kernel(attention, CPU), plan.run_config.prefill_chunk)
    positions, push = list[Tensor](), prefill.push

    def recorded(cache: Any, embeddings: Tensor, at: Tensor) -> Any:
        positions.append(at)
        return push(cache, embeddings, at)

    prefill.push = recorded  # type: ignore[method-assign]
    runner = PromptRunner(model, plan, layout, prefill, stages)
    logits = finished(runner.run(MadeFrames(plan)))  # type: ignore[arg-type]
    each = model.spec.slice_tokens(plan.run_config.height, plan.run_config.width)
    ids = [
        token
        for segment in layout
        for token in getattr(segment, "ids", None) or [VIDEO_TOKEN] * (segment.slices * each)  # type: ignore[union-attr]
    ]
    return Ran(logits, runner, ids, torch.cat(positions, dim=1))


def greedy(pair: Pair, ran: Ran, count: int) -> list[int]:
    """The next tokens by the engine's decode loop."""
    cached = ran.runner.cached_prompt
    assert cached is not None
    kernel = make_kernel("flash", CPU)
    runner = make_decode_runner(pair.loaded.model, cached.cache, kernel, ran.runner.next_position, Sampler(0, 1, 0))
    return list(decode(runner, ran.logits, frozenset(), count))


def processed(pair: Pair, frames: Tensor, text: str, **metadata: Any) -> Inputs:
    """What transformers' own processor makes of (n, 3, height, width) frames and a text with one video token."""
    rate = {"fps": 1.0, "frames_indices": list(range(len(frames))), "total_num_frames": len(frames)} | metadata
    return dict(
        pair.processor(
            text=[text],
            videos=[frames],
            video_metadata=[rate],
            do_sample_frames=False,
            return_tensors="pt",
            add_special_tokens=False,
        )
    )


def oracle_inputs(pair: Pair, plan: Plan, frames: Tensor, text: str) -> Inputs:
    """What transformers' model takes of a plan's frames, whose rate must be constant, and a text."""
    rate, indices = (
        (plan.indices[1] - plan.indices[0]) / (plan.timestamps_seconds[1] - plan.timestamps_seconds[0]),
        plan.indices,
    )
    metadata = {"fps": rate, "frames_indices": list(indices), "total_num_frames": indices[-1] + 1}
    return pair.case.complete(processed(pair, frames, text, **metadata), plan)


def made_inputs(pair: Pair, plan: Plan, system: str | None = SYSTEM) -> Inputs:
    """What transformers' model takes of the prompt of `run_prompt`."""
    return oracle_inputs(pair, plan, pictures(plan), rendered(pair, system))


def rendered(pair: Pair, system: str | None = SYSTEM) -> str:
    """The prompt's text with one video token."""
    return text_of(pair, build_prompt(pair.loaded, QUESTION, system))


def text_of(pair: Pair, prompt: PromptTokens) -> str:
    """A prompt's text with one video token."""
    text: str = pair.loaded.tokenizer.decode([*prompt.head, VIDEO_TOKEN, *prompt.tail])
    return text


def pictures(plan: Plan) -> Tensor:
    """The frames of `run_prompt` as transformers' processor takes them."""
    return torch.from_numpy(MadeFrames(plan).pictures).permute(0, 3, 1, 2)


def oracle_text(pair: Pair, plan: Plan, history: Sequence[Turn], question: str, tokens: int) -> str:
    """transformers' greedy answer to a question about the clip, after earlier turns."""
    text = text_of(pair, build_prompt(pair.loaded, question, None, history))
    inputs = oracle_inputs(pair, plan, frames_of(pair, CLIP, plan), text)
    out = pair.oracle.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=756, pad_token_id=0)
    decoded: str = pair.loaded.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return decoded.strip()


def config_of(pair: Pair, **fields: Any) -> EngineConfig:
    """Float32 on the CPU in small chunks."""
    options = {"weights": "fp32", "kv": "native", "vision_chunk": 2, "prefill_chunk": 64} | fields
    return EngineConfig(model=str(pair.folder), device="cpu", isolate_decoder=False, remember=False, **options)


def request_of(pair: Pair, question: str = QUESTION, video: str = CLIP, **fields: Any) -> Request:
    """A question about four frames of a clip, 4 tokens wide and 3 high."""
    side = pair.spec.pixel_factor
    return Request(video, question, **({"frames": 4, "size": (4 * side, 3 * side), "max_tokens": 16} | fields))


def assert_same_until_a_tie(ours: list[int], oracle: Any, inputs: Inputs, tie: float = 1e-4, **how: Any) -> None:
    """Equal token by token to `generate`; a smaller gap than `tie` may go either way and ends the comparison."""
    made = oracle.generate(
        **inputs, **how, max_new_tokens=len(ours), do_sample=False, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    expected = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    for place, (token, wanted) in enumerate(zip(ours, expected, strict=True)):
        if token != wanted:
            best = made.logits[place][0].topk(2).values
            assert best[0] - best[1] < tie, (place, ours, expected)
            return


def ask(config: EngineConfig, *requests: Request) -> list[Answer]:
    """Answers of one session."""
    answers = []
    with Session(config) as session:
        for request in requests:
            last = list(session.ask(request))[-1]
            assert isinstance(last, Answered)
            answers.append(last.answer)
    return answers


def frames_of(pair: Pair, video: str, plan: Plan) -> Tensor:
    """The frames of an answer's plan at their size: (n, 3, height, width)."""
    size = plan.run_config
    resize = pair.loaded.model.family.resize_frame
    with open_video(video, isolated=False) as reader:
        return torch.stack([resize(one.rgb, size.height, size.width) for one in reader.frames(plan.indices)])


def ask_together(config: EngineConfig, requests: Sequence[Request]) -> list[str]:
    """The texts of requests that are answered at once."""
    texts = [""] * len(requests)
    with Session(config) as session:
        for index, event in session.ask_many(requests):
            if isinstance(event, Answered):
                texts[index] = event.answer.text
    return texts


def magnify(folder: Path, names: Sequence[str], factor: float) -> None:
    """Multiply the weights whose names end in one of `names`, so that a residual stream leaves float16's range."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    grown = {name: tensor * factor for name, tensor in tensors.items() if name.endswith(tuple(names))}
    assert grown
    save_file(tensors | grown, path, metadata={"format": "pt"})
