"""Golden files of the partial methods."""

from __future__ import annotations

import torch
from golden_files import GoldenFile
from torch import Tensor

from entries.entry import Entry
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.methods.data_pass import BatchData
from vpeft_bench.methods.gps import GPS
from vpeft_bench.methods.registry import build_method


def _views(file: GoldenFile) -> list[tuple[Tensor, ...]]:
    """Two batches of two views, as the reference's pass over the data: images 0-3, then 4-5."""
    keys = ("select/views_a", "select/views_b", "select/labels")
    first, second, labels = (file.tensor(key) for key in keys)
    parts = (slice(0, 4), slice(4, 6))
    return [(first[p].double(), second[p].double(), labels[p]) for p in parts]


def _check_losses(file: GoldenFile, attached: Attached) -> None:
    """The losses of both batches; and what cross-entropy selects instead."""
    masks = file.group("mask_ce")
    if attached.model.get_parameter("head.weight").dtype is not torch.float64 or not masks:
        return  # the closest calls are a few 1e-5 apart
    for loss in ("supcon", "ce"):
        method = build_method("gps", {**attached.method.options(), "loss": loss})
        assert isinstance(method, GPS)
        for start, (*views, labels) in zip((0, 4), _views(file), strict=True):
            off = method.loss_of(attached.backbone, views, labels)
            assert abs(off - file.tensor(f"select/{loss}_loss_{start}")) < 1e-8
    for name, indices in method.select(attached.backbone, BatchData(_views(file))).items():
        expected = masks[f"{name}.weight"].flatten().nonzero().squeeze(1)
        assert torch.equal(indices.long(), expected), name


ENTRIES: dict[str, Entry] = {
    "full": Entry("full", merges=True),
    "linear": Entry("linear", merges=True),
    "bitfit": Entry("bitfit", merges=True),
    "swin_bitfit": Entry("bitfit", merges=True),
    "lntune": Entry("ln_tune", merges=True),
    "swin_lntune": Entry("ln_tune", merges=True),
    "gps": Entry(
        "gps",
        lambda hyper: {
            "per_neuron": hyper["per_neuron"],
            "temperature": hyper["temperature"],
        },
        merges=True,
        calibration=_views,
        check_selection=_check_losses,
        masks="mask_supcon",
    ),
}
