"""A finished run beside the frozen model that it started from, on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.runs.build import build_model, device_of
from vpeft_bench.runs.shown import Reopened
from vpeft_bench.tasks.base import Model
from vpeft_bench.tasks.names import kind_of

_BATCH = 64


def require_one_size(run: Reopened, what: str) -> None:
    """Refuse a run whose pictures have no common size.

    Raises:
        VpeftBenchError: they have none.
    """
    if (kind := kind_of(run.config)).any_size:
        raise VpeftBenchError(f"{what} pictures of one size, {kind.name} has others")


def frozen(run: Reopened) -> Model:
    """The model before it was tuned: the backbone with its weights, and nothing placed."""
    pl.seed_everything(run.config.seed, verbose=False)  # random weights are those of the run again
    return build_model(replace(run.config, method={"name": "linear"}), run.dataset)


def drawn_at_random(run: Reopened, most: int) -> list[int]:
    """At most ``most`` pictures of the split that a run was scored on: always the same ones."""
    count = len(run.dataset.split(run.split))
    return sorted(np.random.default_rng(0).permutation(count)[:most].tolist())


def pictures(run: Reopened, chosen: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Pictures as the network gets them, uint8 ``(B, 3, H, W)``, and their labels, in batches."""
    kind = kind_of(run.config)
    loader: Any = kind.batches(
        run.config, run.dataset, run.model.preprocessing, run.split, train=False
    )
    parts = [np.asarray(chosen[at : at + _BATCH]) for at in range(0, len(chosen), _BATCH)]
    return [loader.dataset[0, part] for part in parts]


def passed(
    run: Reopened, model: Model, batches: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[Tensor]:
    """What the network of a model puts out for each batch, as it is evaluated."""
    network, device = model.attached.model, device_of(run.config.hardware.accelerator)
    network.to(device).eval()
    with torch.no_grad():
        for images, _ in batches:
            yield network(model.preprocessing.normalize(images.to(device)))
