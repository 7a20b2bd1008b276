"""Options that methods got after runs had been recorded, and what was done before they existed.

A run without the option and a run with the value of that time are one experiment: they share their
identity, their cell of the leaderboard and their delta checkpoint. A default may be another value;
then a default run is an experiment of its own.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AddedOption:
    """One option that came later.

    Attributes:
        before: the value at which the method does what it did without the option.
        family: of the backbones where it has an effect; None: of all.
        where: values of other options without which it has no effect.
    """

    before: Any
    family: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)


ADDED: dict[str, dict[str, AddedOption]] = {
    "compacter": {
        "activation": AddedOption("gelu"),
        "phm_init_range": AddedOption(0.01),
        "unfreeze_layer_norms": AddedOption(False),
    },
    "spt": {"proj_reads": AddedOption("output", where={"form": "adapter"})},
    "ssf": {"merge_norms": AddedOption(True, family="swin")},
    "synqt": {"head_norm_eps": AddedOption(None)},
}
"""By method and option."""


def completed(method: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded ``method`` (name and options) with what came later at the value of its time."""
    added = ADDED.get(str(method.get("name")), {})
    return {name: option.before for name, option in added.items()} | dict(method)


def effective(method: Mapping[str, Any], family: str) -> dict[str, Any]:
    """As :func:`completed`, without later options that have no effect on ``family``.

    Records from before and after are described alike.
    """
    every = completed(method)
    added = ADDED.get(str(method.get("name")), {})
    return {
        name: value
        for name, value in every.items()
        if name not in added or _has_effect(added[name], every, family)
    }


def deciding(method: Mapping[str, Any], family: str) -> dict[str, Any]:
    """``method`` (name and options) without later options that change nothing on ``family``."""
    added = ADDED.get(str(method.get("name")), {})
    return {
        name: value
        for name, value in effective(method, family).items()
        if name not in added or value != added[name].before
    }


def _has_effect(option: AddedOption, method: Mapping[str, Any], family: str) -> bool:
    needed = option.where.items()
    return option.family in (None, family) and all(method.get(k) == v for k, v in needed)


def family_of(model: str) -> str:
    """The family of a timm model by its name: of those with a block map, Swin's start with it."""
    return "swin" if model.startswith("swin_") else "vit"
