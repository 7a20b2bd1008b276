"""How the settings of a run were chosen, in words: what a reader of its number should know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

UNTUNED = "untuned"
"""General settings, which nobody has tried for this method on this backbone."""
BY_HAND = "by hand"
"""A rate or a weight decay that the command line gives."""

_BUDGET = re.compile(r"(tuned: \d+ \w+|published)\b")


def budget_of(chosen: str) -> str:
    """What of how settings were chosen must be equal to compare: how many were tried.

    Args:
        chosen: as :func:`how_chosen` gives it.
    """
    found = _BUDGET.match(chosen)
    return found[1] if found else chosen


def how_chosen(asked: Mapping[str, Any]) -> str:
    """How learning rate and weight decay were chosen.

    Args:
        asked: the configuration, as a record keeps it.

    Returns:
        What the variant or the recipe says, ``untuned`` or ``by hand``; empty where the record is
        from before recipes said it.
    """
    variant = asked.get("variant") or {}
    if variant.get("name"):
        return str(variant.get("chosen") or "")
    train, method = asked.get("train") or {}, asked["method"]["name"]
    if "recipe" not in train:
        return ""
    if train["optimizer"] != "adamw" or train["lr_batch_size"] is not None:
        return BY_HAND  # every recipe is for AdamW, and gives rates as they are used
    for key, table in (("lr", "learning_rates"), ("weight_decay", "weight_decays")):
        looked_up = train[table]
        if looked_up and train[key] != looked_up.get(method, looked_up.get("default")):
            return BY_HAND
    named = train["recipe"] and method in train["learning_rates"]
    return str(train["recipe"]) if named else UNTUNED
