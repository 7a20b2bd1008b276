"""Requests and devices for tests, small enough to be measured in a second."""

from __future__ import annotations

import sys
from typing import Any

import torch

from vpeft_bench.config.sections import BackboneConfig, CostConfig, HardwareConfig
from vpeft_bench.cost.device import MeteredDevice
from vpeft_bench.cost.measure import measured_card
from vpeft_bench.cost.request import Request
from vpeft_bench.methods.registry import build_method
from vpeft_bench.records.cost_card import CostCard, Device

DEMO = BackboneConfig("demo_vit", "vpeft_demo_vit", "none")
TINY_SWIN = BackboneConfig(
    "tiny_swin",
    "swin_tiny_patch4_window7_224",
    "none",
    model_args={"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2]},
)
TINY: dict[str, Any] = {
    "batch_size": 4,
    "inference_batch_size": 2,
    "warmup_steps": 1,
    "steps": 2,
    "blocks": 2,
    "num_classes": 10,
    "allow_busy": True,
}
METERED = MeteredDevice(
    torch.device("cpu"), Device("cpu", "a CPU", 1, None, None, None), None, "no meter"
)


def request(
    method: str = "linear",
    backbone: BackboneConfig = DEMO,
    hardware: dict[str, Any] | None = None,
    **cost: Any,
) -> Request:
    """A request with tiny batches; ``cost`` changes the protocol."""
    built = build_method(method, {})
    return Request(
        method={"name": method, **built.options()},
        backbone=backbone,
        hardware=HardwareConfig("cpu", "cpu", **({"threads": 1} | (hardware or {}))),
        cost=CostConfig(**(TINY | cost)),
    )


def card_of(*arguments: Any, **keywords: Any) -> CostCard:
    """The card of a request, measured in this process."""
    return measured_card(request(*arguments, **keywords), METERED)


PYTHON = (sys.executable, "-c")
