"""Splits that a data set does not come with: a stated share of each class, drawn once for all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vpeft_bench.data.schema import DataConfig
from vpeft_bench.data.splits import FileSplit
from vpeft_bench.errors import Problem

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
        found = {"train": _taken(everything, ~out), "test": _taken(everything, out)}
    if "val" not in found:
        train = found["train"]
        out = held_out(train.labels, config.hold_out, config.split_seed)
        found |= {"train": _taken(train, ~out), "val": _taken(train, out)}
    train, val = found["train"], found["val"]
    joined = FileSplit(np.concatenate([train.labels, val.labels]), train.paths + val.paths)
    return {**found, "trainval": joined}


def _taken(split: FileSplit, chosen: NDArray[np.bool_]) -> FileSplit:
    paths = tuple(path for path, taken in zip(split.paths, chosen, strict=True) if taken)
    return FileSplit(split.labels[chosen], paths)


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
