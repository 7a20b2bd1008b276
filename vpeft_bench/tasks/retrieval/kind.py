"""Image retrieval: pictures of classes that were not trained on, found by an embedding.

The embedding is the L2-normalised output of the backbone's own classifier, which has ``width``
outputs instead of one for each class; with ``width: null`` it is the feature that the classifier
would read. It is trained on some classes and scored on others: each picture of the evaluated split
is a query for the others, and those of its own class are to come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft_bench.config.schema import RunConfig, trained_split
from vpeft_bench.errors import Problem
from vpeft_bench.fields import setting
from vpeft_bench.metric_names import Metric
from vpeft_bench.tasks.labelled import LabelledKind, labelled

if TYPE_CHECKING:
    from vpeft_bench.data.inspection import Inspector
    from vpeft_bench.data.loading import EpochSampler
    from vpeft_bench.data.splits import Dataset
    from vpeft_bench.tasks.base import Model, Task, Training
    from vpeft_bench.tasks.kind import Drawn
    from vpeft_bench.tasks.writers import PredictionWriter

FIRST = (1, 2, 4, 8)
"""Among how many of the nearest pictures one of the query's class is looked for."""

OF_LOSS = {"proxy_anchor": ("alpha", "margin"), "normalized_softmax": ("temperature",)}
"""The losses, and what each alone reads."""


@dataclass
class RetrievalOptions:
    """What may follow ``task.``.

    Attributes:
        width: numbers of an embedding; null: the backbone's own feature, and no layer on top.
        loss: see :data:`vpeft_bench.tasks.retrieval.losses.LOSSES`.
        alpha, margin: of ``loss=proxy_anchor``.
        temperature: of ``loss=normalized_softmax``.
        proxy_lr_factor: the rate of the loss's own proxies over that of the backbone.
        per_class: pictures of a class that come together in a training batch; 1: plain shuffling.
    """

    width: int | None = setting(128, minimum=2)
    loss: str = setting("proxy_anchor", choices=OF_LOSS)
    alpha: float = setting(32.0, minimum=1e-6)
    margin: float = setting(0.1, minimum=0, maximum=2)
    temperature: float = setting(0.05, minimum=1e-6)
    proxy_lr_factor: float = setting(1.0, minimum=1e-12)
    per_class: int = setting(4, minimum=1)


class RetrievalKind(LabelledKind):
    """An embedding, trained by proxies of classes, scored by what lies nearest."""

    name = "retrieval"
    options = RetrievalOptions
    in_parts = False
    metrics = {
        "recall_at_1": Metric("R@1", share=True),
        **{f"recall_at_{k}": Metric(f"R@{k}", beside=("recall_at_1",)) for k in FIRST[1:]},
        "map_at_r": Metric("MAP@R", beside=("recall_at_1",)),
    }

    # ---- what is asked of it ---------------------------------------------------------------------

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """A head of another task, and what has no effect here."""
        if config.head is not None:
            what = "is no head for retrieval: the embedding has none but its own layer"
            yield Problem(f"head={config.head.name}", what, "leave head= out; task.width=...")
        if smoothing := config.train.label_smoothing:
            what = "has no effect: the loss of retrieval has no label smoothing"
            yield Problem(f"train.label_smoothing={smoothing:g}", what, "leave it out")
        for loss, keys in OF_LOSS.items():
            for key in keys if loss != config.task["loss"] else ():
                if config.task[key] != (usual := getattr(RetrievalOptions, key)):
                    what = f"has no effect: it is of task.loss={loss}"
                    yield Problem(f"task.{key}={config.task[key]}", what, f"task.{key}={usual}")
        if config.train.batch_size % config.task["per_class"]:
            size, each = config.train.batch_size, config.task["per_class"]
            what = f"makes no whole batch of train.batch_size={size}"
            fix = f"train.batch_size={max(1, round(size / each)) * each}, or task.per_class=1"
            yield Problem(f"task.per_class={each}", what, fix)

    def method_refusal(self, config: RunConfig, method: Any) -> str | None:
        """A method that needs logits of the classes it is trained on."""
        if method.selects:
            return "it chooses what it trains by a classifier's gradients or classes"
        if config.task["width"] is None and (reason := method.not_dense):
            return f"without task.width there is no classifier, and {reason}"
        return None

    # ---- its data --------------------------------------------------------------------------------

    def inspectors(self) -> Sequence[Inspector]:
        """What classes are looked at for."""
        from vpeft_bench.tasks.retrieval.inspect import inspect_disjoint_classes

        return (inspect_disjoint_classes,)

    def sampler(
        self, config: RunConfig, dataset: Dataset, split: str, *, train: bool
    ) -> EpochSampler:
        """In training, some pictures of each class of a batch together."""
        from vpeft_bench.tasks.retrieval.batches import GroupSampler

        if not train:
            return super().sampler(config, dataset, split, train=train)
        labels = labelled(dataset, split).labels
        each = config.task["per_class"]
        return GroupSampler(labels, config.train.batch_size, config.seed, each)

    # ---- its network -----------------------------------------------------------------------------

    def outputs(self, config: RunConfig, dataset: Dataset) -> int:
        """The numbers of an embedding; 0: the feature itself."""
        return config.task["width"] or 0

    def module(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: Model,
        network: Any,
        training: Training | None,
    ) -> Task:
        """A loss of proxies, and what lies nearest."""
        from vpeft_bench.tasks.retrieval.module import Retrieval

        return Retrieval(
            network,
            model.preprocessing.normalize,
            RetrievalOptions(**{k: v for k, v in config.task.items() if k != "name"}),
            trained=labelled(dataset, trained_split(config)).labels,
            num_classes=dataset.num_classes,
            seed=config.seed,
            training=training,
        )

    # ---- what is shown and kept of it ------------------------------------------------------------

    def drawn(self, task: Any, dataset: Dataset, split: str, batches: Any, pictures: int) -> Drawn:
        """Queries, and what lies nearest to each."""
        from vpeft_bench.tasks.retrieval.pictures import nearest_pictures

        return nearest_pictures(task, dataset, split, batches, pictures)

    def writer(
        self, config: RunConfig, dataset: Dataset, split: str, folder: Path
    ) -> PredictionWriter:
        """The embedding of every picture."""
        from vpeft_bench.tasks.writers import Vectors

        pictures, root = labelled(dataset, split), config.data.root
        path = folder / "embeddings.parquet"
        return Vectors(path, pictures, root, dataset, "embedding", predicts=False)


KIND = RetrievalKind()
