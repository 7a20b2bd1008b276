"""What a record or a card was asked for, as text."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from vpeft_bench.config.identity import counted, scientific
from vpeft_bench.files import sha256
from vpeft_bench.formats import option_text
from vpeft_bench.records.cost_card import CostCard
from vpeft_bench.records.run_record import RunRecord, WeightsLabel

DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "backbones" / "demo_vit.safetensors"
_NETWORK = ("model", "image_size", "model_args")


def text_in(asked: dict[str, Any], group: str, key: str) -> str:
    """``asked[group][key]`` as text; ValueError if the configuration has no such key."""
    section = asked.get(group)
    if not isinstance(section, dict) or section.get(key) is None:
        raise ValueError(f"asked.{group}.{key} is missing")
    value = section[key]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def subject(made: RunRecord | CostCard) -> dict[str, str]:
    """What a card has in common with the runs whose cost it tells; ValueError if it is not said.

    Returns:
        ``method`` and its ``options``; ``backbone`` and the ``network`` that decides its cost:
        model, image size and model arguments, not the weights; ``head_options``, empty for the
        backbone's own classifier; ``precision`` of the training.
    """
    asked = made.asked
    method = text_in(asked, "method", "name")
    options = counted(asked["method"], made.uncounted)
    if made.method_version != 1:
        options["version"] = made.method_version
    backbone = text_in(asked, "backbone", "name")
    head = scientific({"head": asked.get("head")}).get("head")
    return {
        "method": method,
        "options": option_text({key: options[key] for key in options if key != "name"}),
        "backbone": backbone,
        "network": option_text({name: asked["backbone"].get(name) or None for name in _NETWORK}),
        "head_options": option_text(head) if isinstance(head, dict) else "",
        "precision": text_in(asked, "hardware", "precision"),
    }


def weights_identity(record: RunRecord) -> str | None:
    """What of the weights entered the hash of a run; None where that cannot be told."""
    weights, backbone = record.where.weights, record.asked.get("backbone")
    if weights is None:
        return None
    if weights.identity is not None:
        return weights.identity
    if weights.label is WeightsLabel.RANDOM:
        return "none"
    if not isinstance(backbone, dict) or backbone.get("weights") != "hub":
        return None
    return _packaged() if weights.label is WeightsLabel.DEMO else weights.source


@functools.cache
def _packaged() -> str:
    return sha256(DEMO_WEIGHTS)
