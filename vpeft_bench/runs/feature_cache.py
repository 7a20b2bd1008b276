"""Frozen features, computed once instead of in every epoch.

What a method reads of the network below it (``Method.reads``) is the same in every epoch where
pictures and frozen layers are deterministic. Then it is computed in one pass and kept, and training
and evaluation start from it: the task is given features instead of pictures, all else stays.

Kept features are named by all they depend on: weights, pictures, preprocessing, what is read, and
the arithmetic. Runs with the same needs share them, in memory within a process or in memory-mapped
files between processes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers.drop import DropBlock2d, DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vpeft_bench.backbones.trunk import OpenedModel, resumes
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import FeatureCache, FeatureType
from vpeft_bench.data.dataset import Dataset
from vpeft_bench.data.loading import BatchKey
from vpeft_bench.data.schema import Augmentation
from vpeft_bench.data.splits import LabelledSplit
from vpeft_bench.errors import DivergedError
from vpeft_bench.runs.build import autocast, device_of
from vpeft_bench.runs.feature_store import (
    DiskStore,
    Features,
    MemoryStore,
    Store,
    bytes_of,
    size_of,
)
from vpeft_bench.tasks.base import Model
from vpeft_bench.tasks.names import kind_of

_FORMAT = 4  # changes when pictures are read otherwise
_PIXELS, _HASH_BYTES = "pixels", 16
"""Stored beside the features: the first bytes of each picture's hash, as numbers of their type."""
_TYPES = {FeatureType.fp32: torch.float32, FeatureType.bf16: torch.bfloat16}
_AHEAD_OF_BLOCKS = ("images", "tokens.0")
"""Not worth keeping: larger than the picture, and what precedes them is under 1 % of the work."""

FeatureBatch = tuple[Features, Tensor]


def room_on(device: torch.device) -> int:
    """Bytes of an accelerator that features may take: half of what is free; 0 on a CPU.

    A fast GPU computes features in less time than it takes to gather and copy them.
    """
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0


def worth_keeping(model: Model) -> bool:
    """Whether what the method reads comes after any frozen block."""
    attached = model.attached
    reads = attached.method.reads(attached.backbone)
    return any(name not in _AHEAD_OF_BLOCKS for name in reads)


def refusal(config: RunConfig, model: Model) -> str | None:
    """Why features that would be worth keeping are not the same in every epoch, or None."""
    attached = model.attached
    if config.data.augmentation is not Augmentation.none:
        return f"data.augmentation={config.data.augmentation.value} changes the pictures"
    if (reason := kind_of(config).not_kept(config)) is not None:
        return reason
    for module, path in attached.backbone.original_modules():
        if _is_random(module):
            return f"{path} draws random numbers in training"
    if not resumes(attached.model):
        return f"{attached.method.name} runs the blocks itself"
    return None


def _is_random(module: nn.Module) -> bool:
    """Whether a module of the frozen network gives other outputs each time it trains."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, DropPath | DropBlock2d):
        return (module.drop_prob or 0) > 0
    return isinstance(module, PatchDropout) and module.prob > 0


class TooLarge(Exception):
    """The features of a run are larger than their limit; the message says what to type."""


@dataclass(frozen=True)
class Kept:
    """Features of one split.

    Attributes:
        features: ``(N, ...)`` for each name, in the order of the split.
        found: whether an earlier run had computed them.
        pixels: by index, the hash of each picture's pixels, where it was a file decoded into
            memory.
    """

    features: Features
    found: bool
    pixels: Mapping[int, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Their size."""
        return size_of(self.features)


class FeatureReader:
    """Frozen features of the splits of a run, kept or computed.

    Args:
        config: what is run.
        dataset: its pictures.
        model: the model, its method placed; its trunk is opened.
        tell: is told in one line what is damaged and set aside.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: Model,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.model = model
        attached = model.attached
        attached.backbone.open_trunk()
        self.names = attached.method.reads(attached.backbone)
        self.kept_names = [name for name in self.names if name != "images"]
        self.dtype = _TYPES[config.hardware.feature_cache_dtype]
        self.device = device_of(config.hardware.accelerator)
        self.limit = int(config.hardware.feature_cache_gib * 2**30)
        in_memory = config.hardware.feature_cache is FeatureCache.memory
        # Of several devices each process keeps them: any picture may be in its share of a batch.
        self.times = config.hardware.devices if in_memory else 1
        self.store: Store = (
            MemoryStore(self.limit // self.times)
            if in_memory
            else DiskStore(Path(config.hardware.feature_cache_dir), self.limit, tell)
        )

    def require_room(self, splits: tuple[str, ...]) -> None:
        """Refuse what cannot be kept, before anything is computed.

        Raises:
            TooLarge
        """
        pictures = sum(len(self.dataset.split(split)) for split in splits)
        needed = pictures * bytes_of(self._shapes, self.dtype) * self.times
        if needed > self.limit:
            gib = math.ceil(10 * needed / 2**30) / 10
            half = ", or hardware.feature_cache_dtype=bf16" if self.dtype.itemsize == 4 else ""
            raise TooLarge(
                f"they take {gib} GiB (hardware.feature_cache_gib={gib} allows it{half})"
            )

    def loader(self, split: str, *, train: bool) -> tuple[DataLoader[FeatureBatch], Kept]:
        """Batches of ``(features, labels)`` in the order that batches of pictures have."""
        config, kind = self.config, kind_of(self.config)
        kept = self._kept(split)
        if kept.bytes <= room_on(self.device):
            kept = replace(kept, features={n: t.to(self.device) for n, t in kept.features.items()})
        pictures = None
        if "images" in self.names:
            pictures = kind.batches(
                config, self.dataset, self.model.preprocessing, split, train=train
            ).dataset
        labels = cast(LabelledSplit, self.dataset.split(split)).labels
        batches = _FeatureBatches(kept, torch.from_numpy(labels), pictures)
        sampler = kind.sampler(config, self.dataset, split, train=train)
        return DataLoader(batches, sampler=sampler, batch_size=None), kept

    def _kept(self, split: str) -> Kept:
        key = self._key(split)
        with self.store.locked(key):
            if (found := self.store.find(key)) is not None:
                return _taken_apart(found, True)
            count = len(self.dataset.split(split))
            shapes = {name: (count, *shape) for name, shape in self._shapes.items()}
            shapes[_PIXELS] = (count, _HASH_BYTES // self.dtype.itemsize)
            features = self.store.empty(key, shapes, self.dtype)
            loader = kind_of(self.config).batches(
                self.config, self.dataset, self.model.preprocessing, split, train=False
            )
            start, finite = 0, []
            for images, _ in loader:
                for name, values in self._read(images).items():
                    features[name][start : start + len(images)].copy_(values)
                    finite.append(values.isfinite().all())
                start += len(images)
            if not torch.stack(finite).all():
                raise DivergedError(f"frozen backbone's output on the {split} split", 0, 0)
            hashes = features[_PIXELS].view(torch.uint8).zero_()
            for index, text in cast(Any, loader.dataset).pixels.items():
                digest = bytearray.fromhex(text)[:_HASH_BYTES]
                hashes[index] = torch.frombuffer(digest, dtype=torch.uint8)
            return _taken_apart(self.store.keep(key, features), False)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature of one picture."""
        height, width = self.model.preprocessing.height_and_width
        found = self._read(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        return {name: tuple(values.shape[1:]) for name, values in found.items()}

    @torch.inference_mode()
    def _read(self, images: Tensor) -> Features:
        """Features of one batch of uint8 pictures, in the arithmetic of the run."""
        model = cast(OpenedModel, self.model.attached.model.to(self.device))
        training = model.training
        model.eval()
        with autocast(self.config.hardware.precision, self.device):
            normalized = self.model.preprocessing.normalize(images.to(self.device))
            found = model.read(self.kept_names, normalized)
        model.train(training)
        return found

    def _key(self, split: str) -> str:
        """The name of a split's features: a hash of everything they depend on."""
        config, preprocessing = self.config, asdict(self.model.preprocessing)
        del preprocessing["augmentation"], preprocessing["sides"]
        identity = {
            "format": _FORMAT,
            "weights": self._weights,
            "backbone": [config.backbone.model, config.backbone.image_size],
            "model_args": config.backbone.model_args,
            "data": [self.dataset.fingerprint, split],
            "pictures": cast(LabelledSplit, self.dataset.split(split)).state(),
            "preprocessing": preprocessing,
            "reads": list(self.kept_names),
            "precision": config.hardware.precision.value,
            "device": self.device.type,
            "dtype": str(self.dtype),
        }
        text = json.dumps(identity, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @functools.cached_property
    def _weights(self) -> str:
        return self.model.attached.base_fingerprint()


def _taken_apart(stored: Features, found: bool) -> Kept:
    """What was stored, the hashes of the pictures apart from their features."""
    hashes = stored[_PIXELS].view(torch.uint8).numpy()
    pixels = {index: row.tobytes().hex() for index, row in enumerate(hashes) if row.any()}
    return Kept({n: t for n, t in stored.items() if n != _PIXELS}, found, pixels)


class _FeatureBatches(TorchDataset[FeatureBatch]):
    """Whole batches of kept features by (epoch, indices), with the pictures where they are read."""

    def __init__(self, kept: Kept, labels: Tensor, pictures: TorchDataset[Any] | None) -> None:
        self.features = kept.features
        self.pixels = kept.pixels
        self.labels = labels
        self.pictures = pictures
        self.device = next(iter(kept.features.values())).device
        self.on_device = self.device.type != "cpu"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: BatchKey) -> FeatureBatch:
        chosen = torch.from_numpy(key[1])
        there = chosen.to(self.device)
        batch = {name: kept[there] for name, kept in self.features.items()}
        if self.pictures is not None:
            batch["images"] = self.pictures[key][0]
        return batch, self.labels[chosen]


def describe(kept: Sequence[Kept], reads: Sequence[str], config: RunConfig) -> str:
    """What is kept, in a few words for the user."""
    pictures = sum(len(next(iter(k.features.values()))) for k in kept)
    mib = sum(k.bytes for k in kept) / 2**20
    names = reads[0] if len(reads) == 1 else f"{len(reads)} maps"
    where = "memory"
    if config.hardware.feature_cache is FeatureCache.disk:
        where = config.hardware.feature_cache_dir
    origin = "found" if all(k.found for k in kept) else "computed once"
    return f"{names} of {pictures:,} pictures {origin}, {mib:,.1f} MiB in {where}"
