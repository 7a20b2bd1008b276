"""The training itself: budget, schedule, checkpoints, curve and the stored weights."""

from __future__ import annotations

import argparse
import csv
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from pretrain.objective import Pretrainer, evaluate, losses, total_loss
from pretrain.rendering import Batch, render_batch


@dataclass(frozen=True)
class Options:
    """The command line."""

    out: Path
    minutes: float | None
    images: int | None
    batch_size: int
    learning_rate: float
    seed: int
    processes: int
    threads: int
    device: str
    checkpoint_minutes: float
    held_out: int
    resume: bool


CURRICULUM_SHARE = 0.4
WARMUP_SHARE = 0.02
EMA_DECAY = 0.999
# Seeds of training batches count up from here; held-out scenes use the seeds below.
FIRST_TRAINING_SEED = 1_000_000


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name beside ``path``, then rename: readers never see half a file."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def export(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> None:
    """Write the backbone as fp32 safetensors, with facts about its making as metadata."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
    metadata = {
        "format": "pt",
        "architecture": "vpeft_demo_vit",
        "license": "apache-2.0",
        "recipe": "scripts/pretrain_demo_backbone.py",
        "training_data": "procedurally rendered scenes",
        **facts,
    }
    data = save(tensors, metadata=metadata)
    write_atomically(path, lambda partial: partial.write_bytes(data))


def learning_rate_factor(progress: float) -> float:
    """Return the linear warm-up, then the cosine, as a function of the spent share of budget."""
    warmup = min(1.0, progress / WARMUP_SHARE)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Build AdamW; norms, biases and the position embedding are not decayed."""
    decayed: list[Tensor] = []
    exempt: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_exempt = parameter.ndim < 2 or name.endswith("pos_embed")
        (exempt if is_exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


class Trainer:
    """One training process; with several, each renders its own images and gradients are averaged.

    Every process computes the same update, so only the first one evaluates and writes files.
    """

    def __init__(self, options: Options, rank: int) -> None:
        self.options = options
        self.rank = rank
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.model = Pretrainer().to(self.device)
        self.average = Pretrainer().to(self.device)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = make_optimizer(self.model, options.learning_rate)
        self.step = 0
        self.spent_seconds = 0.0  # by earlier runs that this one resumes
        if options.resume:
            self._load()
        self.started = time.monotonic()

    @property
    def images(self) -> int:
        """Return how many images all processes have trained on."""
        return self.step * self.options.batch_size * self.options.processes

    @property
    def seconds(self) -> float:
        """Return the wall-clock time spent, including that of resumed runs."""
        return self.spent_seconds + time.monotonic() - self.started

    def progress(self) -> float:
        """Return the share of the budget spent; 1 ends the run."""
        shares = [0.0]
        if self.options.minutes is not None:
            shares.append(self.seconds / (60 * self.options.minutes))
        if self.options.images is not None:
            shares.append(self.images / self.options.images)
        return max(shares)

    def run(self) -> None:
        """Train until the budget is spent."""
        first = self.rank == 0
        held_out = self._held_out() if first else []
        recent: list[dict[str, Tensor]] = []
        saved_at = self.seconds
        progress = self._agreed(self.progress())
        while progress < 1:
            recent.append(self._train_step(progress))
            progress = self._agreed(self.progress())
            due = self.seconds - saved_at > 60 * self.options.checkpoint_minutes
            if first and (due or progress >= 1):
                self._report(held_out, recent)
                self._save()
                recent.clear()
                saved_at = self.seconds

    def _agreed(self, progress: float) -> float:
        """Return the first process's progress: all must stop after the same step."""
        if self.options.processes == 1:
            return progress
        shared = torch.tensor([progress], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def _train_step(self, progress: float) -> dict[str, Tensor]:
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_factor(progress)
        scene_index = self.step * options.processes + self.rank
        batch = render_batch(
            options.batch_size,
            seed=FIRST_TRAINING_SEED * (options.seed + 1) + scene_index,
            difficulty=min(1.0, progress / CURRICULUM_SHARE),
            device=self.device,
        )
        self.optimizer.zero_grad(set_to_none=True)
        by_head = losses(self.model, batch)
        total_loss(by_head).backward()
        if options.processes > 1:
            self._average_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return {name: value.detach() for name, value in by_head.items()}

    def _average_gradients(self) -> None:
        """Average over processes in one message."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.options.processes
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _update_average(self) -> None:
        """Follow the weights with an exponential average, shorter at the start."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for average, value in pairs:
            average.lerp_(value, 1 - decay)

    def _held_out(self) -> list[Batch]:
        """Render the fixed scenes on which every run of this script is scored."""
        size = min(128, self.options.held_out)
        return [
            render_batch(size, seed=seed, device=self.device)
            for seed in range(max(1, self.options.held_out // size))
        ]

    def _report(self, held_out: list[Batch], recent: list[dict[str, Tensor]]) -> None:
        """Append a line to the curve: losses since the last line, scores of the average."""
        row: dict[str, float] = {
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        for name in recent[0]:
            row[f"loss_{name}"] = float(torch.stack([r[name] for r in recent]).mean())
        self.average.eval()
        row |= evaluate(self.average, held_out)
        path = self.options.out / "curve.csv"
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if k != "images" else v for k, v in row.items()})
        shown = ("patch_foreground", "patch_shape", "patch_phase", "image_shape", "image_count")
        scores = "  ".join(f"{name} {row[f'score_{name}']:.3f}" for name in shown)
        print(f"{self.images} images  {self.seconds:.0f} s  {scores}", flush=True)

    def _save(self) -> None:
        out, options = self.options.out, self.options
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write_atomically(out / "checkpoint.pt", lambda partial: torch.save(state, partial))
        facts = {"images": str(self.images), "seed": str(options.seed)}
        export(self.average.trunk.state_dict(), out / "demo_vit.safetensors", facts)

    def _load(self) -> None:
        path = self.options.out / "checkpoint.pt"
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.spent_seconds = state["seconds"]


def train_process(rank: int, options: Options, rendezvous: str) -> None:
    """Run one process of a training run."""
    torch.set_num_threads(options.threads)
    if options.processes > 1:
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=options.processes
        )
    Trainer(options, rank).run()
    if options.processes > 1:
        dist.destroy_process_group()


def pretrain(options: Options) -> None:
    """Train, leaving ``demo_vit.safetensors``, ``checkpoint.pt`` and ``curve.csv`` in ``out``."""
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        (options.out / "curve.csv").unlink(missing_ok=True)
    if options.processes == 1:
        train_process(0, options, "")
        return
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = f"file://{directory}/rendezvous"
        spawn(train_process, args=(options, rendezvous), nprocs=options.processes)


def parse_options(arguments: list[str] | None = None, *, description: str = "") -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--minutes", type=float, help="wall-clock budget, resumed runs included")
    parser.add_argument("--images", type=int, help="budget in images, over all processes")
    parser.add_argument("--batch-size", type=int, default=32, help="images per process and step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak of the cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes (CPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument("--held-out", type=int, default=1024, help="images that score the heads")
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint.pt")
    values = parser.parse_args(arguments)
    if values.minutes is None and values.images is None:
        parser.error("give a budget: --minutes, --images or both")
    return Options(**{field.name: getattr(values, field.name) for field in fields(Options)})
