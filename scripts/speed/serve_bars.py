"""The bars on serving: switching between attachments, and rows that have one each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

from speed.measure import Row, Settings, interleaved, ratios, timed
from vpeft_bench.attaching.attachment import attach
from vpeft_bench.attaching.stacking import Attachments, attachments

SWITCHED = ("lora", "adapter", "prefix", "bitfit", "ssf")
ROWS = 8


def switching(settings: Settings) -> list[Row]:
    """Switching a ViT-B/16 from one attachment to another that is in memory."""
    found = []
    for method in SWITCHED:
        carried = attachments(_serving(settings, method, 4))
        names = itertools.cycle(carried)
        for _ in range(20):
            carried.only(next(names))
        values = [_once(carried, next(names)) for _ in range(20 if settings.quick else 1000)]
        found.append(Row(f"switch of {method}", "time", values, "s"))
    return found


def rows_of_a_batch(settings: Settings) -> list[Row]:
    """A batch of ViT-S/16 whose rows have one attachment each, against one for all, and singly."""
    found = []
    for method in ("lora", "adapter", "prefix"):
        model = _serving(settings, method, ROWS, "vit_small_patch16_224")
        carried = attachments(model)
        images = torch.randn(ROWS, 3, *model.patch_embed.img_size, device=settings.device)  # type: ignore[union-attr,misc]  # a ViT
        sides = {
            "rows": timed(_forward(model, carried, [list(carried)], images), settings),
            "one": timed(
                _forward(model, carried, [[next(iter(carried))] * ROWS], images), settings
            ),
            "alone": timed(_forward(model, carried, [[n] for n in carried], images), settings),
        }
        values = interleaved(sides, settings.repeats)
        raw = {f"{name}, s": times for name, times in values.items()}
        for other, what in (("one", "one attachment for all"), ("alone", "one row after another")):
            quantity = f"time of {ROWS} attachments in {ROWS} rows / time of {what}"
            found.append(
                Row(f"rows of {method}", quantity, ratios(values["rows"], values[other]), sides=raw)
            )
    return found


ITEMS = (switching, rows_of_a_batch)


def _serving(
    settings: Settings, method: str, count: int, name: str = "vit_base_patch16_224"
) -> nn.Module:
    """A ViT (or a tiny one) without a head, with ``count`` attachments, all of them out."""
    small = {"img_size": 32, "depth": 2} if settings.quick else {}
    name = "vit_tiny_patch16_224" if settings.quick else name
    model = timm.create_model(name, num_classes=0, **small).eval().to(settings.device)
    for index in range(count):
        attach(model, method, as_=f"{method} {index}").disable()
    return model


def _once(carried: Attachments, name: str) -> float:
    start = time.perf_counter()
    carried.only(name)
    return time.perf_counter() - start


def _forward(
    model: nn.Module, carried: Attachments, batches: list[list[str]], images: torch.Tensor
) -> Callable[[], None]:
    """All pictures, in batches whose rows have the attachments named; of one only, switched."""

    @torch.inference_mode()
    def step() -> None:
        start = 0
        for names in batches:
            part = images[start : start + len(names)]
            start += len(names)
            if len(set(names)) == 1:
                carried.only(names[0])
                model(part)
            else:
                with carried.rows(names):
                    model(part)

    return step
