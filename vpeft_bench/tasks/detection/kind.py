"""Object detection, with masks where the head predicts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import Problem
from vpeft_bench.heads.names import masks, of_task, predict_masks
from vpeft_bench.metric_names import BoxMetric, Metric
from vpeft_bench.tasks.dense import DenseKind

if TYPE_CHECKING:
    from vpeft_bench.backbones.load import LoadedBackbone
    from vpeft_bench.data.inspection import Inspector
    from vpeft_bench.data.loading import Preprocessing
    from vpeft_bench.data.splits import Dataset
    from vpeft_bench.drawing import Panel
    from vpeft_bench.tasks.base import Model, Task, Training
    from vpeft_bench.tasks.kind import Drawn
    from vpeft_bench.tasks.writers import PredictionWriter

_COCO_TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
    "ap_all_detections": "AP of all detections",
    "ar_all_detections": "AR of all detections",
}
_BESIDE = {
    "box_ap": ("mask_ap", "voc07_ap50", "voc12_ap50"),
    "mask_ap": ("box_ap",),
    "box_ap50": ("box_ap",),
    "mask_ap50": ("mask_ap",),
    "box_ap_all_detections": ("box_ap",),
    "mask_ap_all_detections": ("mask_ap",),
}


class DetectionKind(DenseKind):
    """A detector around the feature maps, scored by average precision."""

    name = "detection"
    legend = "; boxes in grey are ignored"
    metrics = {
        **{
            f"{kind}_{name}": Metric(f"{kind} {title}", _BESIDE.get(f"{kind}_{name}", ()))
            for kind in ("box", "mask")
            for name, title in _COCO_TITLES.items()
        },
        "voc07_ap50": Metric("AP50 (VOC 2007)"),
        "voc12_ap50": Metric("AP50 (VOC 2012)"),
    }

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Those of every dense kind, and a headline of masks where the head predicts none."""
        yield from super().problems(config)
        head, by_masks = config.head, config.data.box_metric is BoxMetric.coco_masks
        if head is not None and by_masks and not masks(head.name):
            yield Problem(
                f"head={head.name}",
                f"predicts no masks, and {config.data.name} is ranked by them",
                f"head={predict_masks()[0]}, or data.box_metric=coco",
            )

    def data_problems(self, config: RunConfig, dataset: Dataset) -> Iterator[Problem]:
        """Masks that the head would learn and the data set does not have."""
        if config.head is None or not masks(config.head.name) or dataset.has_masks:
            return
        boxes = ", ".join(name for name in of_task(self.name) if not masks(name))
        lacking = "some objects of" if dataset.unmasked else "the objects of"
        yield Problem(
            f"head={config.head.name}",
            f"predicts masks, and {lacking} {config.data.name} have none",
            f"one of these: head={boxes}",
        )
        yield from dataset.unmasked

    def accepts(self, dataset: Dataset) -> bool:
        """Whether there are objects in its pictures."""
        from vpeft_bench.data.splits import ObjectSplit

        return isinstance(dataset.split("test"), ObjectSplit)

    def inspectors(self) -> Sequence[Inspector]:
        """What objects are looked at for."""
        from vpeft_bench.data.inspect_objects import inspect_objects
        from vpeft_bench.data.inspect_shapes import inspect_shapes

        return (inspect_objects, inspect_shapes)

    def preprocessing(self, config: RunConfig, loaded: LoadedBackbone) -> Preprocessing:
        """Resized on the device, by the detector."""
        from dataclasses import replace

        from vpeft_bench.heads.resizing import FILTER

        return replace(super().preprocessing(config, loaded), interpolation=FILTER)

    def of_preprocessing(self, preprocessing: Preprocessing) -> dict[str, Any]:
        """The detector normalises as well."""
        return {"mean": preprocessing.mean, "std": preprocessing.std}

    def module(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: Model,
        network: Any,
        training: Training | None,
    ) -> Task:
        """The detector's own losses, and average precision."""
        from vpeft_bench.tasks.detection.module import Detection

        assert config.head is not None
        classes, limit = dataset.num_classes, config.head.max_detections
        return Detection(network, classes, config.data.box_metric, limit, training)

    def truth(self, dataset: Dataset, split: str, index: int, cell: int) -> Panel:
        """The picture with its boxes and masks."""
        from vpeft_bench.tasks.detection.pictures import truth

        return truth(dataset, split, index, cell)

    def drawn(self, task: Any, dataset: Dataset, split: str, batches: Any, pictures: int) -> Drawn:
        """Truth and detections side by side."""
        from vpeft_bench.tasks.detection.pictures import detections

        return detections(task, dataset, split, batches, pictures)

    def writer(
        self, config: RunConfig, dataset: Dataset, split: str, folder: Path
    ) -> PredictionWriter:
        """COCO's result files."""
        from vpeft_bench.tasks.detection.predictions import Detections

        return Detections(dataset, split, folder)


KIND = DetectionKind()
