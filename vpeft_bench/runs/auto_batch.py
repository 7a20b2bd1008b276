"""``hardware.auto_batch``: what is tried next where memory was not enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.runs.validation import part_problems
from vpeft_bench.tasks.names import kind_of


@dataclass(frozen=True)
class Smaller:
    """A config that needs less memory and is the same run.

    Attributes:
        config: what is run from now on.
        said: what has changed.
    """

    config: RunConfig
    said: str


def smaller_batches(config: RunConfig, dataset: Dataset, *, scoring: bool) -> Smaller | None:
    """Half as much at once; None where that is one picture already, or cannot be divided.

    Args:
        config: with which memory was not enough.
        dataset: that it is about.
        scoring: it was not enough for an evaluation.
    """
    hardware = config.hardware
    if scoring:
        size = hardware.eval_batch_size // 2
        # A dense head notices the size of a batch, which is the run's identity there.
        if size < 1 or kind_of(config).any_size:
            return None
        return _changed(config, f"hardware.eval_batch_size={size}", eval_batch_size=size)
    parts = 2 * hardware.accumulate
    at_once = config.train.batch_size / (parts * hardware.devices)
    smaller = _changed(
        config,
        f"hardware.accumulate={parts}: {max(1, round(at_once))} of {config.train.batch_size} "
        "pictures at once",
        accumulate=parts,
    )
    return None if any(part_problems(smaller.config, dataset)) else smaller


def _changed(config: RunConfig, said: str, **keys: Any) -> Smaller:
    return Smaller(replace(config, hardware=replace(config.hardware, **keys)), said)
