"""Building a backbone: a timm model with its weights and its own preprocessing facts."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vpeft_bench import kept
from vpeft_bench.backbones import demo_vit as _demo_vit  # noqa: F401  registers the demo with timm
from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.families import block_map
from vpeft_bench.backbones.weights import WeightsSource, load_weights, weights_source
from vpeft_bench.errors import Problem, UnsupportedBackboneError, nearest
from vpeft_bench.kept import Kept
from vpeft_bench.traits import Trait


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone ready for a method.

    Attributes:
        model: the timm model with a fresh head.
        source: where its weights came from.
        pretrained_cfg: the weights' own facts: mean, std, interpolation, input size.
        image_size: height and width it is fed with, pixels.
        any_size: whether it takes pictures of any other size as well.
        notes: what was decided in reading its weights (:func:`load_weights`), in words.
    """

    model: nn.Module
    source: WeightsSource
    pretrained_cfg: dict[str, Any]
    image_size: tuple[int, int]
    any_size: bool = False
    notes: tuple[str, ...] = ()


def create(model: str, num_classes: int, image_size: int | None, **model_args: Any) -> nn.Module:
    """A timm model without weights.

    Args:
        model: timm name, with tag.
        num_classes: outputs of the fresh head; 0 for none.
        image_size: input height and width, pixels; None for the weights' own.
        model_args: further arguments of the timm model.
    """
    if image_size is not None:
        model_args["img_size"] = image_size
    return timm.create_model(model, pretrained=False, num_classes=num_classes, **model_args)


def load_backbone(
    model: str,
    weights: str,
    num_classes: int,
    image_size: int | None = None,
    any_size: bool = False,
    **model_args: Any,
) -> LoadedBackbone:
    """A timm model filled from ``weights`` ("hub", "none" or a file).

    Where :mod:`vpeft_bench.kept` is told to, a copy of the last one is given if it would be equal.

    Args:
        any_size: prepare it for pictures of any size, as dense heads need; some families stay with
            the square of ``image_size``.

    Raises:
        WeightsMismatchError, MissingWeightsError: see :mod:`vpeft_bench.backbones.weights`.
        UnsupportedBackboneError: the model has no block map.
    """
    if not kept.wanted():
        return _load(model, weights, num_classes, image_size, any_size, model_args)
    source = weights_source(weights, model)
    # A fresh head, and whatever else the file does not fill, follow from the generator's state.
    key = (model, weights, _state(source), num_classes, image_size, any_size, repr(model_args))
    begins = _generators()
    if (found := _models.find((*key, begins))) is not None:
        loaded, ends = found
        torch.set_rng_state(ends)
        return copy.deepcopy(loaded)
    loaded = _load(model, weights, num_classes, image_size, any_size, model_args)
    if _generators()[1:] == begins[1:]:  # none but torch's, which is put forward in the same way
        with contextlib.suppress(RuntimeError):  # a model that cannot be copied is loaded anew
            kept_model = copy.deepcopy(loaded), torch.get_rng_state()
            _models.put((*key, begins), kept_model, 1, 1)
    return loaded


_models: Kept[tuple[LoadedBackbone, Tensor]] = Kept()
"""The model that was loaded last, untouched, and torch's generator after it."""


def _generators() -> tuple[Hashable, ...]:
    """The states of torch's, Python's and NumPy's generators."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(numpy_state)


def _state(source: WeightsSource) -> tuple[int, ...]:
    """What tells whether a file of weights is still the same one."""
    if source.path is None or not source.path.exists():
        return ()
    told = source.path.stat()
    return told.st_mtime_ns, told.st_size, told.st_ino


def _load(
    model: str,
    weights: str,
    num_classes: int,
    image_size: int | None,
    any_size: bool,
    model_args: dict[str, Any],
) -> LoadedBackbone:
    family = outline(model, image_size).family
    any_size = any_size and family.any_size is not None
    if any_size:
        model_args = dict(family.any_size or {}) | model_args
    built = create(model, num_classes, image_size, **model_args)
    family.prepare(built)
    source = weights_source(weights, model)
    notes = load_weights(built, source)
    config: dict[str, Any] = dict(built.pretrained_cfg)  # type: ignore[arg-type]  # timm's own dict
    size = (image_size, image_size) if image_size else tuple(config["input_size"][1:])
    return LoadedBackbone(built, source, config, (int(size[0]), int(size[1])), any_size, notes)


def check_model(model: str) -> list[Problem]:
    """What is wrong with a timm name; empty if it can be built."""
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        close = nearest(architecture, timm.list_models())
        fix = f"did you mean backbone.name={close}" if close else ""
        return [Problem(f"backbone model {model}", "timm has no such model", fix)]
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        fix = f"tags: {', '.join(tags)}"
        return [Problem(f"backbone model {model}", f"timm knows no weights tag {tag}", fix)]
    return []


def outline(model: str, image_size: int | None = None, **model_args: Any) -> Backbone:
    """The block map of a model without memory for its weights (on the meta device).

    Raises:
        UnsupportedBackboneError: the model has no block map.
    """
    with torch.device("meta"):
        return block_map(create(model, 0, image_size, **model_args))


@functools.cache
def traits_of(model: str) -> frozenset[Trait]:
    """What the backbones of a timm model's family have; nothing where it has no block map."""
    try:
        return outline(model).family.traits
    except UnsupportedBackboneError:
        return frozenset()
