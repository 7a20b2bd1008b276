"""What a config is composed for, and which overrides have no effect on that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum

from hydra.core.override_parser.types import Override

from vpeft_bench.config.choices import GROUPS
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.cost.request import MEASURED_GROUPS
from vpeft_bench.errors import Problem
from vpeft_bench.fields import Measured, settings


class Purpose(Enum):
    """What a config is composed for."""

    RUN = "a run"
    COST = "a cost card"
    TUNE = "a search"
    DATA = "a look at data"


_MEASURED = {*MEASURED_GROUPS, "rerun", "hydra", "sweep"}
_LOOKED_AT = {"data", "experiment", "head", "task", "hydra"}
_RANDOM_WEIGHTS = "backbone.weights=none"


_ELSEWHERE = ("cost", "tune")
"""Sections that a sub-command of that name alone reads."""
_OF_POINTS = {
    "protocol": ("protocol=select", "protocol.name=select"),
    "predictions": ("predictions=true",),
    "variant": ("variant=null",),
}
"""What holds for every point of a search, by the key that is overridden: it may be typed."""

_FIXES = {
    Purpose.TUNE: "its points are trained on train, scored on val, keep their predictions and are "
    "of no variant;\n--final seed=0,1,2 runs what was chosen under protocol=final, as a variant",
    Purpose.COST: "it depends on method, backbone, hardware and cost; weights are always random",
    Purpose.DATA: "it depends on data, and what goes with it; leave the others out",
}


def has_no_effect(override: Override, purpose: Purpose) -> bool:
    """Whether ``purpose`` does not read what is overridden; an unknown key is no case of that."""
    key = override.key_or_group
    first = key.split(".")[0].split("/")[0]
    if purpose is Purpose.RUN:
        return first in _ELSEWHERE
    if purpose is Purpose.TUNE:
        typed = override.input_line
        return first == "cost" or typed not in _OF_POINTS.get(first, (typed,))
    known = {*GROUPS, "recipe", *(f.name for f in fields(RunConfig))}
    if purpose is Purpose.DATA:
        return first in known - _LOOKED_AT
    if key == "backbone.weights":  # they are random in any case
        return override.input_line != _RANDOM_WEIGHTS
    hardware = settings(RunConfig).get(key) if first == "hardware" else None
    unread = hardware is not None and hardware.measured is Measured.NO
    return first in known - _MEASURED or unread


def idle_problems(idle: Sequence[Override], purpose: Purpose) -> Iterator[Problem]:
    """One problem for all overrides that have no effect on ``purpose``."""
    if not idle:
        return
    typed = ", ".join(override.input_line or "" for override in idle)
    first = {override.key_or_group.split(".")[0] for override in idle}
    readers = [f"python -m vpeft_bench {name} ... reads it" for name in sorted(first)]
    fix = "; ".join(readers) if first <= {*_ELSEWHERE} else _FIXES[purpose]
    if purpose is Purpose.COST and any(override.key_or_group == "results_dir" for override in idle):
        fix += "\ncost.results_dir=... says where cards lie"
    yield Problem(typed, f"no effect on {purpose.value}", fix)
