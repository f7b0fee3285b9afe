"""Trains one stage of a trial: plain PyTorch that knows neither Ray nor MLflow.

In a process group the ranks train one model: each takes its parts of the same batches, gradients
are summed, and the first rank evaluates. The numbers are those of one process.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ablate.core.files import atomic
from ablate.core.metrics import SELECTION, Metrics
from ablate.core.recipe import Recipe, loss_weights
from ablate.core.trial import Stage, Trial, folder_hash
from ablate.data import TrainBatches
from ablate.data.batches import Batch, Prefetched
from ablate.data.dataset import open_dataset
from ablate.training.captioning import Captioner
from ablate.training.evaluate import evaluate, evaluate_captions
from ablate.training.example_losses import ExampleLosses, outputs_digest, write_examples
from ablate.training.optim import autocast, build, schedule, set_rates
from assemblies import (
    CoCa,
    CoCaConfig,
    Embeddings,
    captioning_loss,
    contrastive_loss,
    load,
    transplant,
)
from assemblies.accumulate import contrastive_gradients, surrogate_loss
from assemblies.checkpoint import save
from assemblies.construct import stream_seed
from assemblies.parallel import (
    add_gradients,
    broadcast_from_rank0,
    rank,
    sum_over_ranks,
    world_size,
)
from assemblies.structure import structure_of
from blocks import Registry, UsageError
from blocks.auxiliary import collect_auxiliary_losses

CURVE_POINTS = 50


class DivergedError(RuntimeError):
    """The loss is no number any more; the trial has failed and is named in the report."""


@dataclass
class State:
    """What changes while training, apart from model and optimiser."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    best_model: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """Model, optimiser, data and progress of one stage of a trial.

    A fine-tuning starts from the checkpoint that pretraining left in ``directory``.
    """

    def __init__(
        self, trial: Trial, stage: Stage, registry: Registry, directory: Path | None = None
    ) -> None:
        self.trial, self.stage, self.recipe = trial, stage, stage.recipe
        self.seed = trial.stream
        if stage.is_finetuning:
            assert directory is not None, "a fine-tuning needs the pretraining's directory"
            self.recipe = replace(stage.recipe, initial=str(directory / "model"))
            self.seed = stream_seed(trial.stream, stage.name)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = autocast(self.recipe.precision, self.device)
        self.data = open_dataset(self.recipe, trial.cell)
        if self.data.pairs.fingerprint != stage.data_fingerprint:
            raise RuntimeError(f"data {self.recipe.data!r} changed after the study was planned")
        if stage.recipe.initial and folder_hash(Path(stage.recipe.initial)) != stage.origin:
            raise RuntimeError(f"{stage.recipe.initial!r} changed after the study was planned")
        self.parts = parts_per_rank(self.recipe, trial.cell.dropout)
        self.batches = self.make_batches()
        model, self.origin = initial_model(trial.cell, trial.stream, self.recipe.initial, registry)
        self.model = model.to(self.device)
        # Taken before any step: two cells whose untrained models say the same are one function.
        self.outputs = outputs_digest(
            self.model, self.data.splits["val"], self.device, self.autocast
        )
        self.weights = loss_weights(trial.cell, self.recipe)
        self.examples = ExampleLosses()
        self.optimizer = build(self.model, self.recipe)
        self.state = State()

    def make_batches(self) -> TrainBatches | Prefetched:
        """Return the training batches, made ahead where there are cores or a GPU to gain by it."""
        batches = TrainBatches(self.data.splits["train"], self.recipe, self.seed)
        # One thread per trial is the rule on a CPU, and then a second one would only take turns.
        threads = min(4, torch.get_num_threads())
        if self.device.type != "cuda" and threads == 1:
            return batches
        return Prefetched(batches, threads=threads, steps=self.recipe.steps)

    def steps(self) -> Iterator[Metrics]:
        """Train to the end; yield the step's metrics at about 50 points and at each evaluation."""
        recipe, state = self.recipe, self.state
        interval = max(1, recipe.steps // CURVE_POINTS)
        count = recipe.evaluate
        evaluations = {round(recipe.steps * (i + 1) / count) for i in range(count)}
        while state.step < recipe.steps and not self.out_of_patience(evaluations):
            began = time.perf_counter()
            metrics = self.step()
            state.step += 1
            logged = state.step % interval == 0 or state.step in evaluations
            logged_metrics = {f"train/{k}": v for k, v in metrics.items()} if logged else {}
            if state.step in evaluations:
                logged_metrics |= {f"val/{k}": v for k, v in self.validate().items()}
            state.seconds += time.perf_counter() - began
            if logged:
                yield {"step": state.step, "seconds": state.seconds, **logged_metrics}

    def out_of_patience(self, evaluations: set[int]) -> bool:
        """Return whether the last ``patience`` evaluations, by their steps, were no better."""
        vain = sum(self.state.best_step < step <= self.state.step for step in evaluations)
        return 0 < self.recipe.patience <= vain

    def step(self) -> Metrics:
        """Take one optimiser step."""
        recipe = self.recipe
        factor = schedule(self.state.step, recipe)
        set_rates(self.optimizer, factor)
        lr = recipe.lr * factor
        batch = self.batches[self.state.step].to(self.device)
        metrics = self.backward(batch)
        add_gradients([*self.model.parameters()])
        # Clipped after the sum over ranks, as one process would clip the whole batch's gradient.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        if not math.isfinite(float(norm)):
            raise DivergedError(
                f"loss {metrics['loss']}, gradient norm {float(norm)} "
                f"at step {self.state.step} (lr {lr:.2g})"
            )
        self.optimizer.step()
        # None, not zero: a parameter without a gradient must not decay or gain momentum.
        self.optimizer.zero_grad(set_to_none=True)
        metrics |= {"lr": lr, "gradient_norm": float(norm)}
        if self.model.cell.contrasts:
            with torch.no_grad():
                # CLIP's bound (arXiv 2103.00020): unbounded, the temperature explodes on small
                # sets.
                self.model.log_scale.clamp_(max=math.log(recipe.max_scale))
                metrics["scale"] = float(self.model.log_scale.exp())
        return metrics

    def backward(self, batch: Batch) -> Metrics:
        """Accumulate gradients over this rank's parts of the batch; return the batch's losses.

        The number of parts changes memory and time, not the losses: captioning weighs all tokens of
        the batch alike, and every pair contrasts with the whole batch. Dropout draws other masks,
        and a block's own auxiliary loss is the mean of the parts'.
        """
        # The first token is given, so a caption of n tokens has n - 1 predictions.
        predicted = int(batch.lengths.sum()) - len(batch.lengths)
        n, ours = self.parts, Batch(*(t.chunk(world_size())[rank()] for t in batch))
        parts = [Batch(*pieces) for pieces in zip(*(t.chunk(n) for t in ours), strict=True)]
        totals: dict[str, float] = {}
        slopes: list[Embeddings | None] = [None] * n
        whole: dict[str, float] = {}
        if n > 1 and self.weights["contrastive"]:
            embed = [functools.partial(self.embed, i, part) for i, part in enumerate(parts)]
            value, gradients = contrastive_gradients(
                embed, lambda e: contrast_share(e, ours.groups)
            )
            whole, slopes = {"contrastive": float(value)}, [*gradients]
        for i, (part, slope) in enumerate(zip(parts, slopes, strict=True)):
            losses = self.losses(i, part, slope, predicted)
            loss = sum(self.weights.get(name, 1.0) * value for name, value in losses.items())
            torch.autograd.backward(cast(Tensor, loss))
            for name, share in losses.items():
                totals[name] = totals.get(name, 0.0) + float(share.detach())
        totals = sum_of_shares(totals | whole)
        return {**totals, "loss": sum(self.weights.get(k, 1.0) * v for k, v in totals.items())}

    def embed(self, number: int, part: Batch) -> Embeddings:
        """Return a part's embeddings, as `losses` will make them again."""
        self.seed_dropout(number)
        with self.autocast:
            return self.model.embed(part.images, part.tokens, part.lengths)

    def seed_dropout(self, part: int) -> None:
        """Pair dropout by step, and repeat it for a part that is run twice.

        Dropout is all that draws from torch's global stream.
        """
        number = rank() * self.parts + part
        torch.manual_seed(stream_seed(self.seed, "dropout", self.state.step, number))

    def losses(
        self, number: int, part: Batch, slope: Embeddings | None, predicted: int
    ) -> dict[str, Tensor]:
        """Return a part's share of the batch's losses; one of weight 0 is not computed.

        With ``slope``, the gradient of the whole batch's contrastive loss by this part's
        embeddings, the share of that loss is one with this gradient.
        """
        self.seed_dropout(number)
        contrast, caption = (self.weights[name] > 0 for name in ("contrastive", "caption"))
        losses: dict[str, Tensor] = {}
        with self.autocast:
            out = self.model(*part[:3], contrast=contrast, caption=caption)
            if out.states is not None:
                smoothing = self.recipe.label_smoothing
                mean = captioning_loss(
                    out.states, self.model.head, part.tokens, part.lengths, smoothing=smoothing
                )
                losses["caption"] = mean * (int(part.lengths.sum()) - len(part.lengths)) / predicted
        if out.embeddings is not None and slope is None:
            losses["contrastive"] = contrast_share(out.embeddings, part.groups)
        elif out.embeddings is not None and slope is not None:
            losses["contrastive"] = surrogate_loss(out.embeddings, slope)
        for name, value in collect_auxiliary_losses(self.model).items():
            refuse_parts(self.recipe, "a block's auxiliary loss")
            losses[f"auxiliary/{name}"] = value / (self.parts * world_size())
        return losses

    def validate(self) -> Metrics:
        """Evaluate on the validation split and remember the model if it is the best so far.

        Only the first rank does; the others learn the loss, which decides how training goes on.
        """
        metrics = self.evaluate_split("val") if rank() == 0 else {}
        # The others cannot know it, and all must stop at the same step or wait for ever.
        loss = broadcast_from_rank0(metrics.get(SELECTION, math.nan))
        if not math.isfinite(loss):
            raise DivergedError(f"validation loss {loss} at step {self.state.step}")
        if loss < self.state.best:
            self.state.best, self.state.best_step = loss, self.state.step
            if rank() == 0:
                self.state.best_model = {
                    name: tensor.detach().cpu().clone()
                    for name, tensor in self.model.state_dict().items()
                }
        return metrics

    def evaluate_split(self, split: str, examples: ExampleLosses | None = None) -> Metrics:
        """Evaluate the model as it is on a split, and collect its losses by example where asked."""
        return evaluate(
            self.model,
            self.data.splits[split],
            self.recipe,
            self.device,
            self.autocast,
            examples=examples,
        )

    def close(self) -> None:
        """Stop making batches."""
        if isinstance(self.batches, Prefetched):
            self.batches.close()

    def finish(self) -> Metrics:
        """Look at the test split, once: with the last weights, then with the best on validation.

        Names say which: ``last/coca`` and ``test/coca``. A search has its best validation loss.
        """
        ran: Metrics = {"best_step": self.state.best_step, "last_step": self.state.step}
        ran["train_seconds"] = self.state.seconds
        if self.stage.is_search:
            return {f"val/{SELECTION}": self.state.best, **ran}
        last = {} if self.state.best_step == self.state.step else self.evaluate_split("test")
        self.model.load_state_dict(self.state.best_model)
        metrics = self.evaluate_split("test", self.examples)
        metrics_of_last = {f"last/{k}": v for k, v in (last or metrics).items()}
        if self.trial.cell.captions:
            captioner = Captioner(self.model, self.data.tokenizer)
            metrics |= evaluate_captions(captioner, self.data.pairs, "test")
        metrics_of_last |= {f"test/{k}": v for k, v in metrics.items()}
        return {**metrics_of_last, **ran}

    def save(self, directory: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {name: getattr(self.state, name) for name in State.__dataclass_fields__}
        # Serialised in memory first: the hash in front tells a torn write from a whole one.
        buffer = io.BytesIO()
        torch.save(
            {
                "key": self.stage.key,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "state": state,
            },
            buffer,
        )
        content = buffer.getvalue()
        with atomic(directory / "checkpoint.pt") as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)

    def resume(self, directory: Path) -> None:
        """Go on from the directory's checkpoint, if it holds a whole one of this stage.

        A damaged one costs time, not the trial: training starts over, to the same numbers.
        """
        path = directory / "checkpoint.pt"
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return
        buffer = io.BytesIO(content[32:])
        # weights_only: a checkpoint may have been put there by somebody else, and pickle runs code.
        loaded = torch.load(buffer, weights_only=True, map_location=self.device)
        if loaded["key"] != self.stage.key:
            return
        self.model.load_state_dict(loaded["model"])
        self.optimizer.load_state_dict(loaded["optimizer"])
        self.state = State(**loaded["state"])
        self.state.best_model = {k: v.cpu() for k, v in self.state.best_model.items()}

    def write_model(self, directory: Path) -> None:
        """Write the best model as a checkpoint folder, and beside it the losses by example."""
        tokenizer = self.data.tokenizer.to_str()
        save(self.trial.cell, self.state.best_model, directory / "model", tokenizer=tokenizer)
        write_examples(self.examples.tensors(), directory)

    def record(self, final: Metrics) -> dict[str, Any]:
        """Return the stage's record; ``outputs`` and ``built`` tell one model from another."""
        return {
            "key": self.stage.key,
            "stage": self.stage.name,
            "metrics": final,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "workers": world_size(),
            "origin": self.origin,
            "outputs": self.outputs,
            "built": structure_of(self.model),
        }


def parts_per_rank(recipe: Recipe, dropout: float) -> int:
    """Return how many parts of a batch each rank takes, one after the other.

    A batch has the recipe's ``accumulate`` parts, and more where those do not go round. Raises
    `UsageError` where that cannot be, or would change what is learned.
    """
    parts = math.lcm(recipe.accumulate, world_size())
    if recipe.batch % parts:
        raise UsageError(
            f"a batch of {recipe.batch} pairs cannot be shared by {world_size()} workers in "
            f"{parts} equal parts; set batch to a multiple of {parts}"
        )
    if dropout:
        refuse_parts(recipe, "dropout")
    return parts // world_size()


def refuse_parts(recipe: Recipe, what: str) -> None:
    """Raise `UsageError` where a batch has other parts than its recipe says, and that matters."""
    if recipe.accumulate % world_size():
        raise UsageError(
            f"{what} depends on the parts of a batch, and {world_size()} workers make other parts "
            f"than accumulate={recipe.accumulate}: set accumulate={world_size()}, or a multiple"
        )


def contrast_share(embeddings: Embeddings, groups: Tensor) -> Tensor:
    """Return this rank's share of the contrastive loss of all ranks' pairs: they add up to it."""
    return contrastive_loss(embeddings, groups, distributed=True) / world_size()


def sum_of_shares(shares: dict[str, float]) -> dict[str, float]:
    """Return the sum over ranks of each number."""
    if world_size() == 1:
        return shares
    names = sorted(shares)
    total = sum_over_ranks(torch.tensor([shares[n] for n in names], dtype=torch.float64))
    return dict(zip(names, total.tolist(), strict=True))


def initial_model(
    cell: CoCaConfig, seed: int, checkpoint: str, registry: Registry
) -> tuple[CoCa, str]:
    """Return the model that training starts from, and in words where its weights come from."""
    if not checkpoint:
        return CoCa(cell, seed=seed, registry=registry), "random weights"
    source = load(checkpoint, registry=registry)
    model, report = transplant(source, cell, seed=seed, registry=registry)
    return model.train(), f"{checkpoint}: {report}"
