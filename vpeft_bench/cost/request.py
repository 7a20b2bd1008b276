"""What is asked of a measurement, and what identifies it.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vpeft_bench.config.identity import measured
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import BackboneConfig, CostConfig, HardwareConfig
from vpeft_bench.records.cost_card import CARD_NAME, Device
from vpeft_bench.records.run_record import directory_name

DEMO_LABEL = "demo backbone"
BUSY_LABEL = "device in use by others"
MEASURED_GROUPS = ("method", "backbone", "hardware", "cost")
"""Of a configuration, what a card keeps."""


@dataclass
class Request:
    """One measurement.

    Attributes:
        method: ``name`` and every option as the method itself has it.
        backbone: with random weights; the values do not change the cost.
        hardware: as in a run.
        cost: the protocol.
        uncounted: options of the method that change nothing.
        method_version: of the method.
    """

    method: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    uncounted: list[str] = field(default_factory=list)
    method_version: int = 1

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        structured = OmegaConf.structured(self)
        container = OmegaConf.to_container(structured, resolve=True, enum_to_str=True)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    def asked(self) -> dict[str, Any]:
        """The part of a configuration that is measured, as JSON values."""
        return {k: v for k, v in self.plain().items() if k in MEASURED_GROUPS}

    def card_id(self, device_name: str) -> str:
        """The directory of its card below ``cost.results_dir``."""
        asked = measured(self.asked(), self.uncounted)
        version = [self.method_version] if self.method_version != 1 else []
        parts = [asked, device_name, *version]
        identity = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        hash_ = hashlib.sha256(identity.encode()).hexdigest()[:10]
        names = (self.backbone.name, self.method["name"])
        return "/".join([*map(directory_name, names), hash_])

    def card_path(self, device_name: str) -> Path:
        """Where its card lies."""
        return Path(self.cost.results_dir, self.card_id(device_name), CARD_NAME)


def request_of(config: RunConfig) -> Request:
    """The part of a whole config that is measured; ``config`` has no problem."""
    from vpeft_bench.backbones.load import traits_of
    from vpeft_bench.methods.registry import build_method

    options = dict(config.method)
    method = build_method(options.pop("name"), options)
    return Request(
        method={"name": method.name, **method.options()},
        backbone=replace(config.backbone, weights="none"),
        hardware=config.hardware,
        cost=config.cost,
        uncounted=method.uncounted(traits_of(config.backbone.model)),
        method_version=method.version,
    )


def from_plain(plain: dict[str, Any]) -> Request:
    """The request that :meth:`Request.plain` gave."""
    merged = OmegaConf.merge(OmegaConf.structured(Request), OmegaConf.create(plain))
    request = OmegaConf.to_object(merged)
    assert isinstance(request, Request)
    return request


def labels(request: Request, device: Device | None) -> list[str]:
    """What is said wherever the card is shown."""
    from vpeft_bench.backbones.weights import HUB, weights_source

    demo = weights_source(HUB, request.backbone.model).kind == "package"
    busy = device is not None and device.busy is not None
    return [DEMO_LABEL] * demo + [BUSY_LABEL] * busy
