"""The options of a type of the peft library: the useful fields of its config class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vpeft_bench.methods.base import option
from vpeft_bench.methods.hf.types import HfType

# Fields of no use here: where an adapter goes is said by ``targets``; biases, whole modules and
# single layers are no part of an adapter; there are no transposed, quantised, tied or Megatron
# linears; and whatever is needed to load a delta exactly is stored.
NOT_OPTIONS = frozenset(
    {
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
        "layers_to_transform",
        "megatron_core",
        "modules_to_save",
        "qalora_group_size",
        "save_indices",
        "save_only_topk_weights",
        "save_precomputed_indices",
        "save_projection",
        "target_modules",
        "use_qalora",
    }
)
LORA_INITS = ("gaussian", "olora", "pissa", "pissa_niter_4", "pissa_niter_16", "orthogonal", "mica")


def option_fields(config_class: type, facts: HfType) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and dataclass field of each option, as ``make_dataclass`` takes them."""
    from peft import PeftConfig

    hints = get_type_hints(config_class)
    hidden = NOT_OPTIONS | set(facts.hidden) | {f.name for f in dataclasses.fields(PeftConfig)}
    for field in dataclasses.fields(config_class):
        if field.name in hidden or field.default is dataclasses.MISSING:
            continue
        hint, choices = _plain_type(hints[field.name])
        # An init that can only be switched off is there for the library's own tests.
        switch = hint in (bool, bool | None) and field.default is True
        no_choice = hint is str and len(choices) == 1
        if hint is None or no_choice or (switch and field.name.startswith("init_")):
            continue
        if field.name == "init_lora_weights":
            choices = LORA_INITS
        minimum, maximum = _range(field.name, field.default)
        yield (
            field.name,
            hint,
            option(field.default, _help(field), minimum=minimum, maximum=maximum, choices=choices),
        )


def _plain_type(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """A type that an option can have, and its choices; None for what no command line can give."""
    union = get_origin(hint) in (Union, UnionType)
    members = get_args(hint) if union else (hint,)
    choices = tuple(
        choice
        for member in members
        if get_origin(member) is Literal
        for choice in get_args(member)
        if isinstance(choice, str)
    )
    kinds = {str if get_origin(member) is Literal else member for member in members}
    optional = NoneType in kinds
    kinds -= {NoneType}
    if kinds == {int, float}:
        kinds = {float}
    if not kinds <= {bool, int, float, str} or (len(kinds) > 1 and kinds != {bool, str}):
        return None, ()
    plain: Any = bool | str if len(kinds) > 1 else kinds.pop()
    return (plain | None if optional else plain), choices


def _range(name: str, default: Any) -> tuple[float | None, float | None]:
    """Bounds that hold for every type."""
    if name.endswith("dropout"):
        return 0.0, 1.0
    return (1, None) if name == "r" and default != 0 else (None, None)


def _help(field: dataclasses.Field[Any]) -> str:
    """The first sentence of what the library says of it."""
    text = " ".join(str(field.metadata.get("help", "")).split())
    sentence = text.split(". ")[0].rstrip(".")
    return sentence or f"as the library's {field.name}"
