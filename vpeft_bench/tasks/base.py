"""What all tasks share: model, optimizer, penalty, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn

from vpeft_bench.attaching.attachment import Attached
from vpeft_bench.backbones.load import LoadedBackbone
from vpeft_bench.config.sections import TrainConfig
from vpeft_bench.data.loading import Preprocessing
from vpeft_bench.tasks.optim import Trained, build_optimizer, schedule


@dataclass(frozen=True)
class Model:
    """A backbone with its method, and what it is fed with.

    Attributes:
        loaded: the backbone, its weights and their facts.
        attached: the method on it; it may not be placed yet.
        preprocessing: how pictures become its input.
    """

    loaded: LoadedBackbone
    attached: Attached
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Training:
    """How a task is trained.

    Attributes:
        config: the optimisation.
        parameters: what the optimizer trains, with the rate of each relative to the peak.
        steps_per_epoch: batches per epoch, for the schedule.
        penalty: gives a further term of the training loss, or None.
        fused_optimizer: update all parameters in one kernel.
        share: the weight of the ``i``-th loss of an epoch, where batches come in parts.
    """

    config: TrainConfig
    parameters: Sequence[Trained]
    steps_per_epoch: int
    penalty: Callable[[], Tensor | None] = lambda: None
    fused_optimizer: bool = True
    share: Callable[[int], float] = lambda _: 1.0


Inputs = Tensor | dict[str, Tensor]
"""uint8 images ``(B, 3, H, W)``, or the frozen features that the method reads, by name."""
LabelledBatch = tuple[Inputs, Tensor]


def _forgotten(prediction: Any) -> None:
    """Predictions are scored, and kept only where that is asked for."""


class Task(pl.LightningModule):
    """One kind of prediction, its training and its metrics.

    A task without ``training`` can only be evaluated.

    Attributes:
        on_prediction: called with what was predicted of each batch that is scored.
        scoring: whether an evaluation has begun and not ended.

    Args:
        model: backbone, method and head.
        training: how it is trained.
    """

    def __init__(self, model: nn.Module, training: Training | None = None) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints leave the frozen weights out
        self.model = model
        self.training_plan = training
        self.on_prediction: Callable[[Any], None] = _forgotten
        self.gradient_norm: Tensor | None = None  # of the last step, where it was clipped
        self._frozen = {n for n, p in self.named_parameters() if not p.requires_grad}
        self._finite: Tensor | None = None
        self.scoring = False

    # ---- what each task says -------------------------------------------------------------------

    def loss(self, batch: Any) -> Tensor:
        """The training loss of one batch."""
        raise NotImplementedError

    def score(self, batch: Any) -> None:
        """Predict one batch and add it to the metrics."""
        raise NotImplementedError

    def forget(self) -> None:
        """Start the metrics anew."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float | None]:
        """Percent by name, of everything scored since; the headline first."""
        raise NotImplementedError

    def per_class(self) -> list[dict[str, float | None]]:
        """Of each class, how often it is in the truth and in the predictions, and its scores."""
        raise NotImplementedError

    def scored(self) -> Any:
        """What was scored since, for another process to add to its own; it can be pickled."""
        raise NotImplementedError

    def combine(self, parts: Sequence[Any]) -> None:
        """Have scored what several processes have: what :meth:`scored` gave, in their order."""
        raise NotImplementedError

    def doubts(self) -> list[str]:
        """What a reader of these metrics should know before believing them; notes of the run."""
        return []

    def confusion(self) -> Tensor | None:
        """``(K, K)`` counts by true and predicted class; None where they do not come in pairs."""
        return None

    # ---- whether its numbers are finite ----------------------------------------------------------

    def changing(self) -> dict[str, Tensor]:
        """What training may change, by name: trained parameters and all buffers."""
        return {n: t for n, t in self.state_dict().items() if n not in self._frozen}

    def note_outputs(self, outputs: Any) -> None:
        """Remember whether raw outputs of the evaluation are finite, without waiting for them.

        Args:
            outputs: a tensor, or any nesting of lists, tuples and dicts of such.
        """
        if isinstance(outputs, Tensor):
            finite = outputs.detach().isfinite().all()
            self._finite = finite if self._finite is None else self._finite & finite
            return
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            self.note_outputs(part)

    def watch(self, *predictors: nn.Module) -> None:
        """Note what these modules give whenever the model is evaluated."""
        for predictor in predictors:
            predictor.register_forward_hook(
                lambda module, _, outputs: None if module.training else self.note_outputs(outputs)
            )

    def outputs_are_finite(self) -> bool:
        """Whether all outputs noted in the last evaluation are."""
        return self._finite is None or bool(self._finite)

    def _start_evaluation(self) -> None:
        self._finite = None
        self.scoring = True
        self.forget()

    def _end_evaluation(self) -> None:
        self.scoring = False
        size = self.trainer.world_size
        if size > 1:
            parts: list[Any] = [None] * size
            distributed.all_gather_object(parts, (self.scored(), self.outputs_are_finite()))
            self.combine([scored for scored, _ in parts])
            self._finite = torch.tensor(all(finite for _, finite in parts))

    # ---- what Lightning calls ------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, and the penalty where there is one; of a part, by its share."""
        assert self.training_plan is not None
        loss = self.loss(batch)
        penalty = self.training_plan.penalty()
        loss = loss if penalty is None else loss + penalty
        share = self.training_plan.share(batch_idx)
        return loss if share == 1 else loss * share

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._start_evaluation()

    def on_validation_epoch_end(self) -> None:
        """Put together what the processes of several devices have scored."""
        self._end_evaluation()

    def on_test_epoch_end(self) -> None:
        """Put together what the processes of several devices have scored."""
        self._end_evaluation()

    def configure_optimizers(self) -> Any:
        """The optimizer of the trained parameters; warm-up and schedule per step."""
        assert self.training_plan is not None
        plan = self.training_plan
        optimizer = build_optimizer(plan.parameters, plan.config, fused=plan.fused_optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": schedule(optimizer, plan.config, plan.steps_per_epoch),
                "interval": "step",
            },
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients together, and keep what it was."""
        if gradient_clip_val:
            parameters = self.trainer.precision_plugin.main_params(optimizer)
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val).detach()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: trained parameters and buffers, not the frozen weights."""
        checkpoint["state_dict"] = self.changing()


class LabelledTask(Task):
    """A task whose network is the backbone itself, which gives one vector for a picture.

    Args:
        model: images ``(B, 3, H, W)`` to vectors ``(B, C)``; by ``resume``, frozen features too.
        normalize: uint8 images to what the model reads, on the device.
        training: how it is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        training: Training | None = None,
    ) -> None:
        super().__init__(model, training)
        self.normalize = normalize

    def forward(self, inputs: Inputs) -> Tensor:
        """Images or frozen features to vectors ``(B, C)``."""
        vectors: Tensor
        if isinstance(inputs, Tensor):
            vectors = self.model(self.normalize(inputs))
            return vectors
        features = {
            name: self.normalize(kept) if name == "images" else kept.float()
            for name, kept in inputs.items()
        }
        model: Any = self.model
        vectors = model.resume(features)
        return vectors
