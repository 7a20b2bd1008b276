"""The families of backbones by name, and the block map of any model."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.family import Family
from vpeft_bench.errors import UnsupportedBackboneError
from vpeft_bench.registry import Registry
from vpeft_bench.traits import Trait

FAMILIES: Registry[Family] = Registry(
    "backbone.family",
    {
        "vit": "vpeft_bench.backbones.vit:FAMILY",
        "deit": "vpeft_bench.backbones.deit:FAMILY",
        "beit": "vpeft_bench.backbones.beit:FAMILY",
        "eva": "vpeft_bench.backbones.eva:FAMILY",
        "swin": "vpeft_bench.backbones.swin:FAMILY",
        "swinv2": "vpeft_bench.backbones.swinv2:FAMILY",
    },
)


def families() -> list[Family]:
    """All of them, in the order in which they were declared."""
    return [FAMILIES.get(name) for name in FAMILIES.names()]


def families_with(traits: Collection[Trait]) -> tuple[str, ...]:
    """Names of the families whose backbones have all of ``traits``."""
    return tuple(family.name for family in families() if set(traits) <= family.traits)


def family_of(model: nn.Module) -> Family | None:
    """The family of a timm model, by its very class; None where there is none."""
    return next((family for family in families() if type(model) in family.models), None)


def block_map(model: nn.Module) -> Backbone:
    """The block map of a timm model.

    Raises:
        UnsupportedBackboneError: no family's map fits the model.
    """
    family = family_of(model)
    if family is None:
        known = ", ".join(sorted(c.__name__ for family in families() for c in family.models))
        raise UnsupportedBackboneError(
            f"{type(model).__name__} has no block map; mapped families: {known} (of timm)"
        )
    return family.map(model)
