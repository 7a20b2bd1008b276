"""Golden files of SPT: what the authors' code selects, and the model with that selection.

The reference has a linear for each of q, k and v; ours has one for all three, so that several of
its tensors are pieces of one of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from golden_files import GoldenFile
from torch import Tensor

from entries.entry import Entry, Hyper, Names, Part
from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones import Backbone
from vpeft_bench.methods.parts.low_rank import LowRankUpdate
from vpeft_bench.methods.parts.sparse import SparseUpdate
from vpeft_bench.methods.spt import SeriesAdapters


class Chosen(NamedTuple):
    """Single entries of one of the reference's tensors.

    Attributes:
        tensor: its name, and ``parameter``: ``weight`` or ``bias``.
        entries: their places in the flattened tensor.
        part: the values that ours learns for them.
        whole: all entries of a vector, which the reference trains in place.
    """

    tensor: str
    parameter: str
    entries: Tensor
    part: Part
    whole: bool

    @property
    def counted_only(self) -> bool:
        """The reference counts single entries of norms and never trains them."""
        return not self.whole and "norm" in self.tensor


def _chosen(backbone: Backbone) -> Iterator[Chosen]:
    for placement in backbone.placements:
        update = placement.module
        if not isinstance(update, SparseUpdate):
            continue
        leaf = placement.path.rpartition(".")[0]
        attention, _, name = leaf.rpartition(".")
        names = [f"{attention}.{part}" for part in "qkv"] if name == "qkv" else [leaf]
        host: Any = getattr(placement.host, update.parameter)
        size = host.numel() // len(names)
        for number, tensor in enumerate(names):
            (where,) = (update.indices // size == number).nonzero(as_tuple=True)
            if len(where):
                whole = host.ndim == 1 and len(where) == size
                part = Part(f"{placement.path}.values", where, addition=whole)
                entries = update.indices[where] - number * size
                yield Chosen(tensor, update.parameter, entries, part, whole)


def _names(hyper: Hyper, backbone: Backbone) -> Names:
    names: dict[str, Part] = {}
    for chosen in _chosen(backbone):
        if not chosen.counted_only:
            kind = chosen.parameter if chosen.whole else f"sparse_{chosen.parameter}"
            names[f"{chosen.tensor}.{kind}"] = chosen.part
    for placement in backbone.placements:
        module, ours = placement.module, placement.path
        host = ours.removesuffix(".delta").rpartition(".")[0]
        if isinstance(module, LowRankUpdate):
            for target in module.A:
                learnable = f"{host}.structured_{target}.learnable"
                for number, side in enumerate("AB"):
                    names[f"{learnable}.{number}.weight"] = Part(f"{ours}.{side}.{target}")
        elif isinstance(module, SeriesAdapters):
            for target in module.down:
                learnable = f"{host}.structured_{target}.learnable"
                for number, half in ((0, "down"), (2, "up")):
                    for part in ("weight", "bias"):
                        our = Part(f"{ours}.{half}.{target}.{part}")
                        names[f"{learnable}.{number}.{part}"] = our
    return names


def _options(hyper: Hyper) -> dict[str, Any]:
    sizes = ("budget", "rank", "alpha", "beta", "batches", "batch_size")
    return {
        "form": hyper["structured_type"],
        "mode": hyper["mode"].split()[0],
        **{key: hyper[key] for key in sizes},
    }


def _batches(file: GoldenFile) -> list[tuple[Tensor, ...]]:
    images, labels = file.tensor("calib/images", torch.float64), file.tensor("calib/labels")
    size = file.hyper["batch_size"]
    return list(zip(images.split(size), labels.split(size), strict=True))


def _check_selection(file: GoldenFile, attached: Attached) -> None:
    if "select/structured" not in file.arrays:
        return  # a variant of other sizes, which the reference has not seen
    assert attached.selection is not None
    structured = attached.selection["structured"].reshape(len(attached.backbone.blocks), -1)
    assert structured.tolist() == file.tensor("select/structured").bool().tolist()
    found = {f"{c.tensor}.{c.parameter}": c for c in _chosen(attached.backbone)}
    single = {name: c.entries.tolist() for name, c in found.items() if not c.whole}
    assert single == {name: each.tolist() for name, each in file.group("select/single").items()}
    told = file.meta["selection"]
    assert {name for name, c in found.items() if c.whole} == set(told["tuned_vectors"])
    assert {name for name, c in found.items() if c.counted_only} == set(told["counted_only"])


def _counted_only(backbone: Backbone) -> set[str]:
    return {chosen.part.name for chosen in _chosen(backbone) if chosen.counted_only}


def _entry(form: str) -> Entry:
    return Entry(
        "spt",
        _options,
        whole=_names,
        merges=form == "lora",
        calibration=_batches,
        check_selection=_check_selection,
        only_ours=_counted_only,
    )


ENTRIES: dict[str, Entry] = {
    "spt_lora": _entry("lora"),
    "spt_adapter": _entry("adapter"),
    "spt_adapter_mlp": _entry("adapter"),
}
