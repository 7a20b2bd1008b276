"""Image retrieval: a loss of proxies, recall and MAP@R of what lies nearest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft_bench.tasks.base import LabelledBatch, LabelledTask, Training
from vpeft_bench.tasks.optim import Trained
from vpeft_bench.tasks.retrieval.kind import FIRST, RetrievalOptions
from vpeft_bench.tasks.retrieval.losses import LOSSES
from vpeft_bench.tasks.retrieval.metrics import Found, find, scores


class Retrieval(LabelledTask):
    """One embedding.

    Args:
        model: images ``(B, 3, H, W)`` to vectors ``(B, D)``; by ``resume``, frozen features too.
        normalize: uint8 images to what the model reads, on the device.
        options: of the loss.
        trained: classes of the training pictures; each of them gets a proxy.
        num_classes: of the data set, trained on or not.
        seed: of the proxies, whatever was drawn before.
        training: how it is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        options: RetrievalOptions,
        trained: NDArray[np.int64],
        num_classes: int,
        seed: int = 0,
        training: Training | None = None,
    ) -> None:
        super().__init__(model, normalize, training)
        classes = torch.from_numpy(np.unique(trained))
        proxy_of = torch.full((num_classes,), -1)
        proxy_of[classes] = torch.arange(len(classes))
        self.register_buffer("proxy_of", proxy_of, persistent=False)
        self.num_classes = num_classes
        self.width = options.width or int(model.num_features)  # type: ignore[arg-type]  # timm's
        if training is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.proxies = LOSSES[options.loss](options, len(classes), self.width)
            factor = options.proxy_lr_factor
            own = [Trained(parameter, factor) for parameter in self.proxies.parameters()]
            self.training_plan = replace(training, parameters=[*training.parameters, *own])
        self.embeddings: list[Tensor] = []
        self.labels: list[Tensor] = []
        self._found: Found | None = None

    def embed(self, inputs: Any) -> Tensor:
        """uint8 images ``(B, 3, H, W)``, or frozen features, to vectors ``(B, D)`` of length 1."""
        return F.normalize(self(inputs).float(), dim=1)

    def loss(self, batch: LabelledBatch) -> Tensor:
        """The loss of the embeddings and their proxies, in float32."""
        inputs, labels = batch
        embeddings = self.embed(inputs)
        with torch.autocast(embeddings.device.type, enabled=False):
            proxy_of: Any = self.proxy_of
            loss: Tensor = self.proxies(embeddings, proxy_of[labels])
        return loss

    def score(self, batch: LabelledBatch) -> None:
        """Keep the embeddings, which are the prediction."""
        inputs, labels = batch
        embeddings = self.embed(inputs)
        self.note_outputs(embeddings)
        self.on_prediction(embeddings)
        self._found = None
        self.embeddings.append(embeddings.detach())
        self.labels.append(labels)

    def forget(self) -> None:
        """Start anew."""
        self.embeddings, self.labels, self._found = [], [], None

    def found(self) -> Found:
        """What lies nearest to each of the pictures that were scored; looked for once."""
        if self._found is None:
            embeddings, labels = torch.cat(self.embeddings), torch.cat(self.labels)
            with torch.autocast(embeddings.device.type, enabled=False):
                self._found = find(embeddings, labels, max(FIRST))
        return self._found

    def metrics(self) -> dict[str, float | None]:
        """Recall at 1, 2, 4 and 8, and MAP@R."""
        return scores(self.found(), FIRST)

    def doubts(self) -> list[str]:
        """That chance does as well: a rate too high can end so, with finite numbers."""
        found, labels = self.found(), torch.cat(self.labels)
        if not len(found.queries):
            return []
        others = labels.bincount(minlength=self.num_classes)[labels[found.queries]] - 1
        chance = 100.0 * float((others / (len(labels) - 1)).mean())
        if 100.0 * float(found.recall_at(1).mean()) > chance:
            return []
        return [f"no better than chance, {chance:.1f} %"]

    def per_class(self) -> list[dict[str, float | None]]:
        """Pictures of each class, its recall at 1 and its MAP@R; null where there is no query."""
        found, labels = self.found(), torch.cat(self.labels)
        images = labels.bincount(minlength=self.num_classes).tolist()
        of_query = labels[found.queries]
        queries = of_query.bincount(minlength=self.num_classes).double()
        per_query = {"recall_at_1": found.recall_at(1), "map_at_r": found.average_precision}
        means = {
            name: (of_query.bincount(values, minlength=self.num_classes) / queries).tolist()
            for name, values in per_query.items()
        }
        return [
            {"images": images[label]}
            | {
                name: 100.0 * mean[label] if queries[label] else None
                for name, mean in means.items()
            }
            for label in range(self.num_classes)
        ]
