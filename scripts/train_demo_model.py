"""Train the demo model from a seed, in stages that resume: see assets/demo-model/README.md.

Example: python scripts/train_demo_model.py --work training --export assets/demo-model
"""

import argparse
import copy
import json
import sys
import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from demo_world.batches import make_batch
from demo_world.card import training_card
from demo_world.export import export_model
from demo_world.recipes import RECIPES
from demo_world.tokenizer import build_tokenizer
from demo_world.training import (
    Heads,
    Optimizer,
    Stage,
    rate_at,
    run_batch,
    run_vision,
    save_checkpoint,
)

HELD_OUT_SEED, HEADS_SEED = 7_000_000, 8_000_000
_HEAD_STEPS = 100


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--export", type=Path, help="folder to write the model to, at every checkpoint")
    parser.add_argument("--family", choices=tuple(RECIPES), default="qwen3_vl")
    parser.add_argument("--start", type=Path, help="checkpoint or exported model to begin with, not random weights")
    parser.add_argument(
        "--average", action="store_true", help="export the mean of the trained weights and those of an exported --start"
    )
    parser.add_argument(
        "--earlier", type=int, nargs=3, metavar=("RUNS", "STEPS", "MINUTES"), default=(0, 0, 0),
        help="what an exported model's card says of its training",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, nargs=3, default=(600, 300, 700), help="steps of stages 1, 2, 3")
    parser.add_argument("--tokens", type=int, default=2400, help="visual tokens per batch")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long; run again to go on")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 matrix products")
    arguments = parser.parse_args()
    if arguments.average and not (arguments.start and arguments.start.is_dir()):
        parser.error("--average needs an exported model as --start")
    return arguments


class Trainer:
    """Model, heads and optimizer of one run, and where it stands."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(arguments.seed)
        self.arguments = arguments
        self.recipe = RECIPES[arguments.family]
        self.tokenizer = build_tokenizer(timed=self.recipe.timed)
        self.model: Any = self.recipe.build(self.tokenizer).to(arguments.device)
        self.heads = Heads().to(arguments.device)
        first, second, third = arguments.steps
        self.stages = (
            Stage(1, first, arguments.tokens, 1e-3),
            Stage(2, second, arguments.tokens, 1e-3),
            Stage(3, third, arguments.tokens, 1e-3),
        )
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.earlier = {"runs": 0, "steps": 0, "minutes": 0.0}  # those that the weights come from
        self.optimizer = Optimizer(self.model, self.heads)
        self.checkpoint = arguments.work / "checkpoint.pt"
        if self.checkpoint.exists():
            self._resume()
        elif arguments.start and arguments.start.is_dir():
            self._start_exported(arguments.start)
        elif arguments.start:
            state = torch.load(arguments.start, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"], strict=False)  # an older run may have had fewer
            own = {"runs": 1, "steps": state["steps_done"], "minutes": state["seconds"] / 60}
            self.earlier = {name: value + own[name] for name, value in state["earlier"].items()}

    def _start_exported(self, folder: Path) -> None:
        """Begin with an exported model; fit the heads, which an export lacks, before anything else learns from them."""
        self.earlier = dict(zip(self.earlier, self.arguments.earlier, strict=True))
        missing, unknown = self.model.load_state_dict(exported_weights(folder), strict=False)
        assert not unknown and missing == ["lm_head.weight"], "an export has every weight, and tied ones once"
        self.model.requires_grad_(False)
        fitting = Stage(3, _HEAD_STEPS, self.arguments.tokens, 1e-3)
        adam = torch.optim.AdamW(self.heads.parameters(), lr=3e-3, weight_decay=0.0)
        for step in range(fitting.steps):
            shown = self._backward(fitting, HEADS_SEED, step, 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)
            if step % 25 == 0:
                log(fitting_heads=step, **shown)
        self.model.requires_grad_(True)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        if state["optimizer"]:
            self.optimizer.restore(state["optimizer"])
        self.curve, self.earlier = state["curve"], state["earlier"]
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(), "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state(), "stage": self.stage, "step": self.step, "seconds": self.seconds,
            "curve": self.curve, "earlier": self.earlier,
            "steps_done": sum(stage.steps for stage in self.stages[: self.stage]) + self.step,
        }  # fmt: skip
        save_checkpoint(self.checkpoint, state)
        if self.arguments.export:
            export_model(self.exported(), self.tokenizer, self.arguments.export, self.recipe)
            (self.arguments.export / "README.md").write_text(self.card(), encoding="utf-8")

    def exported(self) -> Any:
        """The model whose weights are exported."""
        if not self.arguments.average:
            return self.model
        model, start = copy.deepcopy(self.model), exported_weights(self.arguments.start)
        for name, weight in model.named_parameters():
            weight.data.lerp_(start[name].to(weight), 0.5)
        return model

    def card(self) -> str:
        """The model card, as far as training knows."""
        given = self.arguments
        first, second, third = given.steps
        steps = f"--steps {first} {second} {third}"
        start = " --start CHECKPOINT" if given.start else ""
        if given.start and given.start.is_dir():
            earlier = " ".join(f"{self.earlier[name]:.0f}" for name in ("runs", "steps", "minutes"))
            start = f" --start MODEL --earlier {earlier}" + " --average" * given.average
        family = f"--family {given.family} --work WORK --export assets/demo-model{start}"
        return training_card(
            recipe=self.recipe,
            command=f"scripts/train_demo_model.py {family} --seed {given.seed} {steps}",
            seed=given.seed,
            parameters=sum(value.numel() for value in self.model.parameters()),
            steps=sum(given.steps),
            minutes=self.seconds / 60,
            device=given.device,
            curve=self.curve,
            earlier=self.earlier,
            averaged=given.average,
        )

    def precision(self) -> AbstractContextManager[Any]:
        if self.arguments.float32:
            return nullcontext()
        return torch.autocast(self.arguments.device.split(":")[0], dtype=torch.bfloat16)

    def train_step(self, stage: Stage) -> dict[str, float]:
        shown = self._backward(stage, self.arguments.seed, self.step, self.step / stage.steps)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(rate_at(stage, self.step))
        return shown

    def _backward(self, stage: Stage, seed: int, step: int, progress: float) -> dict[str, float]:
        """Add a batch's gradients; return its losses."""
        batch = make_batch(seed, step, stage.number, progress, stage.tokens, self.tokenizer, self.recipe)
        with self.precision(), sdpa_kernel(SDPBackend.MATH):  # on a CPU its backward is the fastest
            if stage.number == 1:
                _, _, slices, _ = run_vision(self.model, self.heads, batch, self.recipe)
                loss, shown = slices, {"slices": slices}
            else:
                out = run_batch(self.model, self.heads, batch, self.recipe)
                loss = 2 * out.answer + 0.4 * out.slices + 0.15 * out.clip
                shown = {"answer": out.answer, "slices": out.slices, "clip": out.clip}
                if self.recipe.timed:
                    loss += 0.15 * out.timing + 0.1 * out.attention
                    shown |= {"timing": out.timing, "attention": out.attention}
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: round(value.item(), 3) for name, value in shown.items()}

    @torch.no_grad()
    def held_out(self, stage: Stage, batches: int = 6) -> dict[str, float]:
        """Share of held-out answers that greedy decoding gets right, by kind of question."""
        right: dict[str, list[bool]] = defaultdict(list)
        for index in range(batches):
            batch = make_batch(HELD_OUT_SEED, index, stage.number, 1.0, 1200, self.tokenizer, self.recipe)
            with self.precision():
                if stage.number == 1:
                    self._slice_accuracy(batch, right)
                    continue
                out = run_batch(self.model, self.heads, batch, self.recipe)
            for clip, turns, marks in zip(batch.clips, batch.turns, out.right, strict=True):
                events = ("", "", "two:", "more:")[min(len(clip.scene.actors), 3)]
                for turn, mark in zip(turns, marks, strict=True):
                    right[events + turn.kind].append(mark)
                    right[events + "all"].append(mark)
        return {kind: round(sum(marks) / len(marks), 3) for kind, marks in sorted(right.items())}

    def _slice_accuracy(self, batch: Any, right: dict[str, list[bool]]) -> None:
        seen, _, _, targets = run_vision(self.model, self.heads, batch, self.recipe)
        for name, wanted in targets.slices.items():
            known = wanted >= 0
            guessed = self.heads.slice[name](seen.mean(1)).argmax(-1).cpu()
            right[name] += (guessed[known] == wanted[known]).tolist()

    def run(self) -> bool:
        """Train until the end or the time limit; returns whether all stages are done."""
        began = saved = time.monotonic()
        before = self.seconds
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            if not stage.steps:
                self.stage += 1
                continue
            shown = self.train_step(stage)
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - began
            if self.step % 25 == 0:
                log(
                    stage=stage.number,
                    step=self.step,
                    seconds=round(self.seconds),
                    **shown,
                )
            if self.step % 250 == 0 or self.step == stage.steps:
                self.curve.append(
                    {"stage": stage.number, "step": self.step, "minutes": self.seconds / 60} | self.held_out(stage)
                )
                log(held_out=self.curve[-1])
            if self.step == stage.steps:
                self.stage, self.step = self.stage + 1, 0
            if now - saved > 120 or self.step == 0:
                self.save()
                saved = now
            if now - began > self.arguments.minutes * 60:
                return False
        return True


def exported_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an exported model, by name."""
    return load_file(folder / "model.safetensors")


def log(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> int:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments)
    log(parameters=sum(p.numel() for p in trainer.model.parameters()), stage=trainer.stage, step=trainer.step)
    done = trainer.run()
    trainer.save()
    return 0 if done else 75  # 75: run again to go on


if __name__ == "__main__":
    raise SystemExit(main())
