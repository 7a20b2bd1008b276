"""Parts of each class: splits that a data set does not come with, and few pictures to train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import Dataset, FileSplit, LabelledSplit
from vpeft_bench.errors import ConfigError, Problem

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What people call the splits, in lower case, and what they are called here."""


def held_out(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Mark ``share`` of the pictures of every class, rounded; the same ones every time.

    A class of two or more pictures keeps at least one of them, and gives at least one.

    Args:
        labels: (N,) the class of each picture, in a fixed order.
        share: of each class, between 0 and 1.
        seed: decides which.

    Returns:
        (N,) whether each is held out.
    """
    out = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        out[generator.permutation(members)[:count]] = True
    return out


def few(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The places of ``count`` pictures of each class, or of all where it has fewer, in order.

    Those of a smaller count are among those of a larger one.

    Args:
        labels: (N,) the class of each picture, in a fixed order.
        count: at least 1.
        seed: decides which.
    """
    chosen = [
        # Each class has a generator of its own, so that another class more changes none of them.
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:count]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))


def few_of_each(
    dataset: Dataset, split: str, count: int | None, seed: int
) -> tuple[Dataset, list[str]]:
    """A data set of whose split ``split`` :func:`few` pictures of each class are left.

    Args:
        count: None: all of them are.

    Returns:
        It, and what belongs beside results on it.

    Raises:
        ConfigError: its pictures have no class each.
    """
    if count is None:
        return dataset, []
    whole = dataset.split(split)
    if not isinstance(whole, LabelledSplit):
        what = f"{dataset.name} is a data set for {dataset.task}: its pictures have no class each"
        raise ConfigError([Problem(f"data.per_class={count}", what, "leave it out")])
    left = whole.taken(few(whole.labels, count, seed))
    sizes = np.unique(whole.labels, return_counts=True)[1]
    smaller = int((sizes < count).sum())
    told = [f"{smaller} of {len(sizes)} classes have fewer than {count} training pictures"]
    return replace(dataset, splits={**dataset.splits, split: left}), told if smaller else []


def completed(parts: Mapping[str, FileSplit], config: DataConfig) -> dict[str, FileSplit]:
    """All four splits, made of what there is.

    Args:
        parts: train, test and perhaps val; or ``all``, of which ``config.test_share`` becomes test.
            Where there is no val, ``config.hold_out`` of the training pictures is.
        config: of the data set; :func:`missing_shares` has found nothing wrong with it.
    """
    found = dict(parts)
    if (everything := found.pop("all", None)) is not None:
        out = held_out(everything.labels, config.test_share, config.split_seed)
        found = _divided(everything, out, "test")
    if "val" not in found:
        train = found["train"]
        out = held_out(train.labels, config.hold_out, config.split_seed)
        found |= _divided(train, out, "val")
    train, val = found["train"], found["val"]
    joined = FileSplit(np.concatenate([train.labels, val.labels]), train.paths + val.paths)
    return {**found, "trainval": joined}


def _divided(split: FileSplit, out: NDArray[np.bool_], name: str) -> dict[str, FileSplit]:
    return {
        "train": split.taken(np.flatnonzero(~out)),
        name: split.taken(np.flatnonzero(out)),
    }


def missing_shares(config: DataConfig, where: str, has: set[str], reported: str) -> list[Problem]:
    """What must be stated of splits that are not there, and what need not be of those that are.

    Args:
        where: of the data set, for the message.
        has: the splits that it comes with.
        reported: what to do where ``val`` is the part that results are reported on.
    """
    if "test" in has:
        idle = {"test_share": config.test_share, "hold_out": "val" in has and config.hold_out}
        if unused := [f"data.{key}={share}" for key, share in idle.items() if share]:
            what = f"comes with {' and '.join(sorted(has - {'train'}))}: the shares have no effect"
            return [Problem(where, what, f"leave {' and '.join(unused)} out")]
        if "val" not in has and config.hold_out == 0:
            what = "has no validation part"
            return [Problem(where, what, "hold training pictures out: data.hold_out=0.2")]
        return []
    if has - {"train"}:
        what = f"has {' and '.join(sorted(has))} and no test part, and a result is of a test part"
        fix = f"{reported}\nthen data.hold_out=0.2 holds validation pictures out of train"
        return [Problem(where, what, fix)]
    if config.test_share == 0 or config.hold_out == 0:
        fix = "state the shares: data.test_share=0.2 data.hold_out=0.2 (of each class; "
        fix += "data.split_seed=N draws others)"
        return [Problem(where, "comes with no splits", fix)]
    return []
