"""The heads by name: what ``head=NAME`` may be, and what each is for.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpeft_bench.registry import Registry


@dataclass(frozen=True)
class Head:
    """What is known of a head before it is built.

    Attributes:
        task: that it is for.
        build: ``module:function`` that builds it. For a classifier: takes the model, its method
            attached, and the head's config, and changes the classifier in place. For segmentation
            as :func:`vpeft_bench.heads.segmenters.build_segmenter`, for detection as
            :func:`vpeft_bench.heads.detectors.build_detector`.
        masks: whether it predicts a mask for every box.
        regions: whether it proposes regions and looks at each again.
    """

    task: str
    build: str
    masks: bool = False
    regions: bool = False


_DETECTOR = "vpeft_bench.heads.detectors:build_detector"
_SEGMENTER = "vpeft_bench.heads.segmenters:build_segmenter"

HEADS: Registry[Head] = Registry(
    "head",
    {
        "batch_norm": Head("classification", "vpeft_bench.heads.classifiers:add_norm"),
        "faster_rcnn": Head("detection", _DETECTOR, regions=True),
        "mask_rcnn": Head("detection", _DETECTOR, masks=True, regions=True),
        "cascade_mask_rcnn": Head("detection", _DETECTOR, masks=True, regions=True),
        "retinanet": Head("detection", _DETECTOR),
        "upernet": Head("segmentation", _SEGMENTER),
        "fpn": Head("segmentation", _SEGMENTER),
        "linear": Head("segmentation", _SEGMENTER),
    },
)


def of_task(task: str) -> list[str]:
    """The heads for a task; classification has the backbone's own where none is chosen."""
    return [name for name in HEADS.names() if HEADS.get(name).task == task]


def predict_masks() -> list[str]:
    """Those that predict a mask for every box."""
    return [name for name in HEADS.names() if HEADS.get(name).masks]


def masks(name: str) -> bool:
    """Whether a head predicts a mask for every box."""
    return name in HEADS and HEADS.get(name).masks
