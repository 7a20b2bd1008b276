"""Image classification: one class of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import Problem
from vpeft_bench.fields import setting
from vpeft_bench.heads.names import HEADS, of_task
from vpeft_bench.metric_names import Metric
from vpeft_bench.registry import found
from vpeft_bench.tasks.labelled import LabelledKind, labelled

if TYPE_CHECKING:
    from torch import nn

    from vpeft_bench.data.inspection import Inspector
    from vpeft_bench.data.splits import Dataset
    from vpeft_bench.tasks.base import Model, Task, Training
    from vpeft_bench.tasks.kind import Drawn
    from vpeft_bench.tasks.writers import PredictionWriter


@dataclass
class ClassificationOptions:
    """What may follow ``task.``.

    Attributes:
        mixup: alpha of Mixup (arXiv 1710.09412): pairs of pictures and of their classes are mixed;
            0: off.
        cutmix: alpha of CutMix (arXiv 1905.04899): a part of one picture is pasted into the other;
            0: off. With both, each batch draws one of them.
    """

    mixup: float = setting(0.0, minimum=0, maximum=100)
    cutmix: float = setting(0.0, minimum=0, maximum=100)


class ClassificationKind(LabelledKind):
    """The backbone's own classifier, trained by cross entropy."""

    name = "classification"
    options = ClassificationOptions
    classifies = True
    metrics = {
        "top1": Metric("top-1", share=True),
        "mean_per_class_accuracy": Metric("mean per class", beside=("top1",)),
        "ece": Metric("ECE", higher_is_better=False),
        "nll": Metric("NLL", unit="nats", maximum=None, higher_is_better=False),
        "brier": Metric("Brier", unit="", maximum=2.0, higher_is_better=False),
    }

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """One class alone, or a head for something else."""
        heads = of_task("classification")
        if config.data.num_classes == 1:
            yield Problem("data.num_classes=1", "out of range", "it must be at least 2")
        if config.head is not None and config.head.name not in heads:
            fix = f"leave head= out for the backbone's own classifier, or head={heads[0]}"
            yield Problem(f"head={config.head.name}", f"is no head for {self.name}", fix)

    def not_kept(self, config: RunConfig) -> str | None:
        """Mixed pictures are others in every step."""
        mixed = [name for name in ("mixup", "cutmix") if config.task.get(name)]
        return f"task.{mixed[0]}={config.task[mixed[0]]:g} mixes pictures" if mixed else None

    def batch_norms(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        """The norm before the classifier."""
        if config.head is not None and config.head.name == "batch_norm":
            yield "head=batch_norm", "leave head= out"

    def inspectors(self) -> Sequence[Inspector]:
        """What labels are looked at for."""
        from vpeft_bench.data.inspect_labels import inspect_labels

        return (inspect_labels,)

    def outputs(self, config: RunConfig, dataset: Dataset) -> int:
        """One for each class."""
        return dataset.num_classes

    def change_classifier(self, config: RunConfig, model: nn.Module) -> None:
        """As ``head`` says, where one is chosen."""
        if config.head is not None:
            found(HEADS.get(config.head.name).build)(model, config.head)

    def module(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: Model,
        network: Any,
        training: Training | None,
    ) -> Task:
        """Cross entropy and accuracy."""
        from vpeft_bench.tasks.classification.module import Classification

        return Classification(
            network,
            dataset.num_classes,
            model.preprocessing.normalize,
            training,
            mixup=config.task["mixup"],
            cutmix=config.task["cutmix"],
        )

    def drawn(self, task: Any, dataset: Dataset, split: str, batches: Any, pictures: int) -> Drawn:
        """Its most confident mistakes."""
        from vpeft_bench.tasks.classification.pictures import mistakes

        return mistakes(task, dataset, split, batches, pictures)

    def writer(
        self, config: RunConfig, dataset: Dataset, split: str, folder: Path
    ) -> PredictionWriter:
        """The logits of every picture."""
        from vpeft_bench.tasks.writers import Vectors

        return Vectors(
            folder / "logits.parquet",
            labelled(dataset, split),
            config.data.root,
            dataset,
            "logits",
        )


KIND = ClassificationKind()
