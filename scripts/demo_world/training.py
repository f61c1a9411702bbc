"""The demo model, its auxiliary heads, and one training step.

Three stages: 1 the vision tower alone on single slices, 2 short clips with the language
model, 3 everything. The answer loss is joined by auxiliary losses whose heads are thrown
away: with answers alone only colors were learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from demo_world.batches import Batch
from demo_world.questions import Turn
from demo_world.recipes import HIDDEN, Recipe
from demo_world.targets import CLIP_CLASSES, IGNORED, TIMING_CLASSES, Targets, asked_slices, make_targets

MUON_SPEED = 2.0
_TIME_WEIGHT = 4.0
_ATTENTION_LAYER = 3  # the family's reference layer in a model of four
_POINTER = 64  # how wide a pointer's queries and keys are
_SLICE_CLASSES = {"shape": 4, "color": 5, "motion": 5}
_TIMING_LAYER = 2  # the decoder's layers whose output has to know times: those after it answer


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage trains on: steps, visual tokens per batch, peak learning rate."""

    number: int
    steps: int
    tokens: int
    rate: float


class Heads(nn.Module):
    """Auxiliary classifiers: of mean-pooled slices, in the language model too, and of that model after the video."""

    def __init__(self) -> None:
        super().__init__()
        self.slice = nn.ModuleDict({name: nn.Linear(HIDDEN, size) for name, size in _SLICE_CLASSES.items()})
        self.timing = nn.ModuleDict({name: nn.Linear(HIDDEN, size) for name, size in TIMING_CLASSES.items()})
        self.query, self.key = nn.Linear(HIDDEN, _POINTER), nn.Linear(HIDDEN, _POINTER)
        self.clip = nn.ModuleDict({name: nn.Linear(HIDDEN, size) for name, size in CLIP_CLASSES.items()})

    def slice_losses(self, pooled: Tensor, targets: Targets) -> Tensor:
        """Sum of the losses on (slices, hidden)."""
        return _sum(_loss(head(pooled), targets.slices[name]) for name, head in self.slice.items())

    def timing_losses(self, hidden: Tensor, batch: Batch, visual: Tensor, targets: Targets) -> Tensor:
        """Sum of the losses on the visual tokens' mean of each slice; hidden is (clips, tokens, hidden)."""
        kept = batch.kept.to(hidden.device)
        rows = hidden[visual]
        slices = torch.arange(len(kept), device=hidden.device).repeat_interleave(kept.sum(1))
        pooled = rows.new_zeros(len(kept), rows.shape[1]).index_add(0, slices, rows) / kept.sum(1, keepdim=True)
        losses = _sum(_loss(head(pooled), targets.timing[name]) for name, head in self.timing.items())
        return losses + self._pointer_loss(hidden, pooled.view(len(batch.clips), -1, HIDDEN), batch)

    def _pointer_loss(self, hidden: Tensor, slices: Tensor, batch: Batch) -> Tensor:
        """Return how far answers' tokens are from knowing the slices that they are about (a pointer network's loss)."""
        keys, losses = self.key(slices), list[Tensor]()
        for row, _, (start, end), wanted in _asked(batch, batch.answers):
            if wanted.any():
                seen = torch.log_softmax((self.query(hidden[row, start - 1 : end - 1]) @ keys[row].T).float(), -1)
                losses.append(-torch.logsumexp(seen[:, wanted], -1).mean())
        return _mean(losses)

    def clip_losses(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Sum of the losses on (clips, hidden)."""
        return _sum(_loss(head(hidden), targets.clip[name]) for name, head in self.clip.items())


def _asked(
    batch: Batch, spans: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[tuple[int, Turn, tuple[int, int], Tensor]]:
    """Yield clip, turn, the turn's span of tokens, and which slices (slices,) show what it is about: none may."""
    for row, (clip, turns, places) in enumerate(zip(batch.clips, batch.turns, spans, strict=True)):
        for turn, place in zip(turns, places, strict=True):
            shown = [False] * len(clip.frame_pairs) if turn.span is None else asked_slices(clip, turn.span)
            yield row, turn, place, torch.tensor(shown)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean() if losses else torch.zeros(())


def _sum(losses: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    wanted = wanted.to(logits.device)
    if not (wanted != IGNORED).any():
        return logits.sum() * 0
    return cross_entropy(logits.float(), wanted, ignore_index=IGNORED)


@dataclass(frozen=True, slots=True)
class Forward:
    """Losses of a batch, and for each turn whether every token of its answer was the likeliest."""

    answer: Tensor
    slices: Tensor
    timing: Tensor
    attention: Tensor
    clip: Tensor
    right: list[list[bool]]


def run_vision(model: Any, heads: Heads, batch: Batch, recipe: Recipe) -> tuple[Tensor, list[Tensor], Tensor, Targets]:
    """Embeddings (clips·slices, tokens, hidden), those that further layers add, the slice losses, and the targets."""
    device, visual, patch = model.device, model.model.visual, recipe.token_pixels // 2
    rows, columns = batch.shot.height // patch, batch.shot.width // patch
    seen, further = recipe.encode(visual, batch.patches.to(device), rows, columns)
    targets = make_targets(batch.clips)
    return seen, further, heads.slice_losses(seen.mean(1), targets), targets


def run_batch(model: Any, heads: Heads, batch: Batch, recipe: Recipe) -> Forward:
    """The whole model on a batch, teacher-forced."""
    seen, further, slice_loss, targets = run_vision(model, heads, batch, recipe)
    ids = batch.ids.to(model.device)
    embeddings = model.get_input_embeddings()(ids)
    visual = (ids == model.config.video_token_id) | (ids == model.config.image_token_id)
    kept = batch.kept.to(model.device)
    embeddings = embeddings.masked_scatter(visual[..., None], seen[kept].to(embeddings.dtype))
    deepstack = [features[kept.flatten()] for features in further]
    added = {"visual_pos_masks": visual, "deepstack_visual_embeds": deepstack} if deepstack else {}
    output = model.model.language_model(
        inputs_embeds=embeddings, position_ids=batch.positions.to(model.device), use_cache=False,
        output_hidden_states=True, **added,
    )  # fmt: skip
    hidden = output.last_hidden_state
    timing = heads.timing_losses(output.hidden_states[_TIMING_LAYER], batch, visual, targets)
    attention = slice_loss.new_zeros(())
    if recipe.timed:
        attention = attention_loss(model.model.language_model, output.hidden_states[_ATTENTION_LAYER], batch, visual)
    after = hidden[torch.arange(len(ids)), batch.after_video.to(model.device)]
    wanted = batch.labels[:, 1:].to(model.device)
    asked = wanted != IGNORED
    logits = model.lm_head(hidden[:, :-1][asked]).float()
    weights = _weights(batch)[:, 1:].to(model.device)[asked]
    loss = (cross_entropy(logits, wanted[asked], reduction="none") * weights).sum() / weights.sum()
    correct = torch.ones_like(wanted, dtype=torch.bool)
    correct[asked] = logits.argmax(-1) == wanted[asked]
    right = [
        [bool(correct[row, start - 1 : end - 1].all()) for start, end in spans]
        for row, spans in enumerate(batch.answers)
    ]
    return Forward(loss, slice_loss, timing, attention, heads.clip_losses(after, targets), right)


def attention_loss(decoder: Any, hidden: Tensor, batch: Batch, visual: Tensor) -> Tensor:
    """Return how little of a question's attention goes to the slices that show what it names.

    The attention is that of the layer by which a question selects frames, mean over heads and the question's tokens;
    hidden (clips, tokens, hidden) is that layer's input. Large models have such layers (FlexSelect, arXiv 2506.00993).
    If no slice shows it, none may have attention: slices are compared with those of other parts of a long video.
    """
    layer, losses = decoder.layers[_ATTENTION_LAYER], list[Tensor]()
    normed, attention = layer.input_layernorm(hidden), layer.self_attn
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(normed).view(shape)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *decoder.rotary_emb(normed, batch.positions.to(hidden.device)))
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    slices = batch.kept.view(len(batch.clips), -1, batch.kept.shape[1])
    for row, turn, (start, end), wanted in _asked(batch, batch.questions):
        if turn.kind != "named":
            continue
        scores = (query[row, :, start:end] @ key[row, :, :end].transpose(1, 2) * attention.scaling).float()
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(start + 1)
        shares = scores.masked_fill(later, float("-inf")).softmax(-1).mean((0, 1))[visual[row, :end]]
        if turn.span is None:
            losses.append(-(1 - shares.sum()).clamp_min(1e-6).log())
        elif wanted.any():
            owners = torch.arange(slices.shape[1]).repeat_interleave(slices[row].sum(1))
            losses.append(-shares[wanted[owners]].sum().clamp_min(1e-6).log())
    return _mean(losses)


def _weights(batch: Batch) -> Tensor:
    """Return what each token's loss counts (clips, tokens): few answers are times, and those are learned last."""
    weights = torch.ones(batch.ids.shape)
    for row, (turns, spans) in enumerate(zip(batch.turns, batch.answers, strict=True)):
        for turn, (start, end) in zip(turns, spans, strict=True):
            if turn.kind == "when":
                weights[row, start:end] = _TIME_WEIGHT
    return weights


class Optimizer:
    """Muon for the blocks' matrices, AdamW for everything else, at one learning rate.

    Muon (Jordan et al. 2024) needs about half the steps here; its updates are scaled to AdamW's size.
    """

    def __init__(self, model: Any, heads: nn.Module) -> None:
        visual = model.model.visual
        layers = [visual.blocks, visual.merger, model.model.language_model.layers]
        layers += [visual.deepstack_merger_list] if hasattr(visual, "deepstack_merger_list") else []
        matrices = [p for layer in layers for p in layer.parameters() if p.dim() == 2]
        others = [p for p in [*model.parameters(), *heads.parameters()] if all(p is not matrix for matrix in matrices)]
        muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(others, lr=0.0, weight_decay=0.0, betas=(0.9, 0.98))
        self._parts: tuple[tuple[torch.optim.Optimizer, float], ...] = ((muon, MUON_SPEED), (adam, 1.0))

    def step(self, rate: float) -> None:
        """Apply and clear the gradients."""
        for part, speed in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * speed
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[Any]:
        """Return the state for a checkpoint."""
        return [part.state_dict() for part, _ in self._parts]

    def restore(self, state: list[Any]) -> None:
        """Continue from a checkpoint."""
        for (part, _), saved in zip(self._parts, state, strict=True):
            part.load_state_dict(saved)


def rate_at(stage: Stage, step: int) -> float:
    """Linear warm-up over 50 steps, then constant; the last stage goes straight down over its last 40 %."""
    rate = stage.rate * min((step + 1) / 50, 1.0)
    left = (stage.steps - step) / stage.steps
    return rate * min(left / 0.4 + 0.01, 1.0) if stage.number == 3 else rate


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
