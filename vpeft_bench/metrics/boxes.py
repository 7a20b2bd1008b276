"""Scores of detected boxes and masks: COCO's, and Pascal VOC's where that is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vpeft_bench.metric_names import BoxMetric
from vpeft_bench.metrics import coco, voc

VOC = (BoxMetric.voc07, BoxMetric.voc12)

Picture = Mapping[str, Tensor]


class BoxMetrics:
    """Keeps all detections and objects of a split, on the CPU, masks as run lengths.

    Args:
        num_classes: K.
        masks: whether masks are predicted.
        metric: which number is the headline.
        max_detections: most detections of a picture. COCO's numbers count 100 of a class; where
            there may be more, there is one more number that counts them all.
    """

    def __init__(
        self, num_classes: int, masks: bool, metric: BoxMetric, max_detections: int = 100
    ) -> None:
        self.num_classes = num_classes
        self.masks = masks
        self.metric = metric
        self.limits = [*coco.LIMITS, *([max_detections] if max_detections > 100 else [])]
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._ranks: list[int] = []
        self._found: list[coco.Found] = []
        self._there: list[coco.There] = []
        self._voc_found: list[voc.Found] = []
        self._voc_there: list[voc.There] = []
        self._scores: dict[str, coco.Scores] | None = None

    def update(self, predictions: Sequence[Picture], targets: Sequence[Picture]) -> None:
        """Add pictures.

        Args:
            predictions: of each picture ``boxes`` ``(N, 4)`` left, top, right, bottom in pixels,
                ``labels`` ``(N,)`` from 0, ``scores`` ``(N,)`` and, where masks are predicted,
                ``masks`` ``(N, H, W)``, true or 1 inside.
            targets: of each picture ``boxes``, ``labels`` and ``masks`` alike, ``ignored`` ``(N,)``
                for COCO's crowds and VOC's difficult objects, and ``areas`` ``(N,)`` in pixels, by
                which COCO's sizes are told apart. Where there is ``crowds`` ``(N,)``, it takes the
                place of ``ignored`` in COCO's metric. ``rank`` ``()`` is the place of the picture
                among others in which equal scores count; without it, they count as they come.
        """
        self._scores = None
        for prediction, target in zip(predictions, targets, strict=True):
            self._add(_on_cpu(prediction), _on_cpu(target))

    def extend(self, other: BoxMetrics) -> None:
        """Add all pictures of another one, after those that are there."""
        self._scores = None
        for name in ("_ranks", "_found", "_there", "_voc_found", "_voc_there"):
            getattr(self, name).extend(getattr(other, name))

    def _add(self, prediction: Picture, target: Picture) -> None:
        # float64, so that widths are not rounded.
        corners = {"found": prediction["boxes"], "there": target["boxes"]}
        boxes = {name: values.double().numpy() for name, values in corners.items()}
        found = coco.Found(
            coco.widths_and_heights(boxes["found"]),
            prediction["scores"].double().numpy(),
            prediction["labels"].numpy(),
            coco.run_lengths(prediction["masks"].bool().numpy()) if self.masks else None,
        )
        there = coco.There(
            coco.widths_and_heights(boxes["there"]),
            target["labels"].numpy(),
            target.get("crowds", target["ignored"]).bool().numpy(),
            target["areas"].double().numpy(),
            coco.run_lengths(target["masks"].bool().numpy()) if self.masks else None,
        )
        self._ranks.append(int(target["rank"]) if "rank" in target else len(self._ranks))
        self._found.append(found)
        self._there.append(there)
        if self.metric in VOC:
            ignored = target["ignored"].bool().numpy()
            self._voc_found.append(voc.Found(boxes["found"], found.scores, found.labels))
            self._voc_there.append(voc.There(boxes["there"], there.labels, ignored))

    def compute(self) -> dict[str, float | None]:
        """Percent, the headline first; None where there is no object that counts."""
        values: dict[str, float | None] = {}
        if self.metric in VOC:
            values[f"{self.metric.value}_ap50"] = voc.voc_ap50(**self._voc())
        kinds = ["box", *(["mask"] if self.masks else [])]
        if self.metric is BoxMetric.coco_masks:
            kinds.reverse()
        for kind in kinds:
            values |= self._summary(kind)
        return values

    def per_class(self) -> list[dict[str, float | None]]:
        """Of each class the objects that count, the detections, and scores in percent."""
        by_class = voc.voc_ap50_by_class(**self._voc()) if self.metric in VOC else None
        objects = self._counts(there.labels[~there.crowds] for there in self._there)
        detections = self._counts(found.labels for found in self._found)
        rows = []
        for label in range(self.num_classes):
            row: dict[str, float | None] = {
                "objects": objects[label],
                "detections": detections[label],
            }
            if by_class is not None:
                row[f"{self.metric.value}_ap50"] = by_class[label]
            for kind, scores in self._evaluated().items():
                row[f"{kind}_ap"] = scores.average_precision(label=label)
                row[f"{kind}_ap50"] = scores.average_precision(level=50, label=label)
                row[f"{kind}_ap75"] = scores.average_precision(level=75, label=label)
                row[f"{kind}_ar100"] = scores.average_recall(label=label)
            rows.append(row)
        return rows

    def _counts(self, labels: Iterable[NDArray[np.int64]]) -> list[int]:
        """How often each class occurs."""
        every = np.concatenate([np.zeros(0, dtype=np.int64), *labels])
        counts: list[int] = np.bincount(every, minlength=self.num_classes).tolist()
        return counts

    def _summary(self, kind: str) -> dict[str, float | None]:
        """COCO's twelve numbers, and two more where 100 detections need not be all."""
        scores = self._evaluated()[kind]
        sizes = coco.SIZES[1:]
        values = {
            "ap": scores.average_precision(),
            "ap50": scores.average_precision(level=50),
            "ap75": scores.average_precision(level=75),
            **{f"ap_{size}": scores.average_precision(size=size) for size in sizes},
            **{f"ar{limit}": scores.average_recall(limit=limit) for limit in coco.LIMITS},
            **{f"ar_{size}": scores.average_recall(size=size) for size in sizes},
        }
        if (limit := self.limits[-1]) > 100:
            values["ap_all_detections"] = scores.average_precision(limit=limit)
            values["ar_all_detections"] = scores.average_recall(limit=limit)
        return {f"{kind}_{name}": value for name, value in values.items()}

    def _evaluated(self) -> dict[str, coco.Scores]:
        """Of boxes and, where they are predicted, of masks; computed once for what was added."""
        if self._scores is None:
            order = sorted(range(len(self._ranks)), key=self._ranks.__getitem__)
            found = [self._found[index] for index in order]
            there = [self._there[index] for index in order]
            kinds = {"box": False, **({"mask": True} if self.masks else {})}
            self._scores = {
                kind: coco.evaluate(found, there, masks=masks, limits=self.limits)
                for kind, masks in kinds.items()
            }
        return self._scores

    def _voc(self) -> dict[str, Any]:
        """What VOC's metric is computed from."""
        return {
            "found": self._voc_found,
            "there": self._voc_there,
            "num_classes": self.num_classes,
            "eleven_points": self.metric is BoxMetric.voc07,
        }


def _on_cpu(picture: Picture) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu() for key, tensor in picture.items()}
