"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.config.sections import HeadNorm, Inference
from vpeft_bench.errors import Problem
from vpeft_bench.metric_names import Metric
from vpeft_bench.tasks.dense import DenseKind

if TYPE_CHECKING:
    from vpeft_bench.backbones.block_map import Backbone
    from vpeft_bench.data.inspection import Inspector
    from vpeft_bench.data.splits import Dataset
    from vpeft_bench.drawing import Panel
    from vpeft_bench.tasks.base import Model, Task, Training
    from vpeft_bench.tasks.kind import Drawn
    from vpeft_bench.tasks.writers import PredictionWriter


class SegmentationKind(DenseKind):
    """A segmenter around the feature maps, scored by intersection over union."""

    name = "segmentation"
    legend = "; pixels without a class are black"
    metrics = {
        "miou": Metric("mIoU"),
        "mean_accuracy": Metric("mAcc", beside=("miou",)),
        "pixel_accuracy": Metric("aAcc", beside=("miou",)),
    }

    def backbone_problems(self, config: RunConfig, backbone: Backbone) -> Iterator[Problem]:
        """What a backbone that reads squares of one size cannot do."""
        sizes = config.input
        if sizes is None or backbone.family.any_size is not None:
            return
        model: Any = backbone.model
        side = model.patch_embed.img_size[0]
        if sizes.crop != side:
            yield Problem(
                f"input.crop={sizes.crop}",
                f"the backbone reads squares of {side} pixels",
                f"input.crop={side}, or backbone.image_size={sizes.crop}",
            )
        if sizes.inference is Inference.whole:
            yield Problem(
                "input.inference=whole",
                f"the backbone reads squares of {side} pixels, not whole pictures of any size",
                "input.inference=slide",
            )

    def batch_norms(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        """The norms of the head."""
        if config.head is not None and config.head.norm is HeadNorm.batch:
            yield "head.norm=batch", "head.norm=group"

    def accepts(self, dataset: Dataset) -> bool:
        """Whether there are label maps of its pictures."""
        from vpeft_bench.data.splits import LabelMapSplit

        return isinstance(dataset.split("test"), LabelMapSplit)

    def inspectors(self) -> Sequence[Inspector]:
        """What label maps are looked at for."""
        from vpeft_bench.data.inspect_maps import inspect_maps

        return (inspect_maps,)

    def module(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: Model,
        network: Any,
        training: Training | None,
    ) -> Task:
        """Cross entropy of every pixel, and intersection over union."""
        from vpeft_bench.tasks.segmentation.module import Segmentation

        normalize = model.preprocessing.normalize
        return Segmentation(network, dataset.num_classes, normalize, training)

    def truth(self, dataset: Dataset, split: str, index: int, cell: int) -> Panel:
        """The picture and its label map."""
        from vpeft_bench.tasks.segmentation.pictures import truth

        return truth(dataset, split, index, cell)

    def drawn(self, task: Any, dataset: Dataset, split: str, batches: Any, pictures: int) -> Drawn:
        """Picture, truth and prediction side by side."""
        from vpeft_bench.tasks.segmentation.pictures import label_maps

        return label_maps(task, dataset, split, batches, pictures)

    def writer(
        self, config: RunConfig, dataset: Dataset, split: str, folder: Path
    ) -> PredictionWriter:
        """One PNG for each picture."""
        from vpeft_bench.tasks.segmentation.predictions import LabelMaps

        return LabelMaps(dataset, split, folder)


KIND = SegmentationKind()
