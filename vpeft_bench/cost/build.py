"""The model that is measured: random weights, the method placed on it, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vpeft_bench.attaching.attachment import Attached, attach_method
from vpeft_bench.backbones.families import block_map
from vpeft_bench.backbones.load import load_backbone, outline
from vpeft_bench.cost.flops import closed_form, count
from vpeft_bench.cost.request import Request
from vpeft_bench.cost.steps import Batches
from vpeft_bench.methods.base import Method
from vpeft_bench.methods.registry import build_method
from vpeft_bench.runs.build import unfuse_attention


@dataclass(frozen=True)
class MeasuredModel:
    """What is measured.

    Attributes:
        attached: the method on the backbone, on the device.
        batches: what it is fed with.
        plain_flops: of one image through the plain backbone, counted.
        closed_form: the same by its formula; None where there is none.
    """

    attached: Attached
    batches: Batches
    plain_flops: int
    closed_form: int | None


def build_measured(request: Request, device: torch.device) -> MeasuredModel:
    """Build the model that ``request`` names.

    Raises:
        UnsupportedBackboneError: there is no block map, or the method is not defined on it.
    """
    model, image_size = _plain_model(request)
    model.to(device)
    layout = _memory_format(request)
    batches = Batches(image_size, request.cost.num_classes, device, layout)
    formula = closed_form(block_map(model), image_size)
    images, _ = batches.draw(1)
    plain = count(lambda: model(images))

    attached = attach_method(model, _method(request), detachable=False)
    if attached.method.selects:
        attached.select(batches.for_selection())
    if not request.hardware.fused_attention:
        unfuse_attention(model)
    if request.hardware.channels_last:
        model.to(memory_format=layout)
    return MeasuredModel(attached, batches, plain, formula)


def _plain_model(request: Request) -> tuple[Any, tuple[int, int]]:
    """The backbone, and the height and width of its input.

    What takes one size only is built for ``cost.image_size``; what takes any keeps its windows.
    """
    backbone, size = request.backbone, request.cost.image_size
    arguments = dict(backbone.model_args)
    family = outline(backbone.model, backbone.image_size, **arguments).family
    if size is not None and family.any_size is None:
        arguments["img_size"] = tuple(size)
    loaded = load_backbone(
        backbone.model,
        backbone.weights,
        request.cost.num_classes,
        backbone.image_size,
        any_size=size is not None,
        drop_path_rate=backbone.drop_path,
        **arguments,
    )
    model: Any = loaded.model
    if request.hardware.gradient_checkpointing:
        model.set_grad_checkpointing(True)
    height, width = size or model.patch_embed.img_size
    return model, (int(height), int(width))


def _method(request: Request) -> Method:
    options = dict(request.method)
    return build_method(options.pop("name"), options).shortened()


def _memory_format(request: Request) -> torch.memory_format:
    return torch.channels_last if request.hardware.channels_last else torch.contiguous_format
