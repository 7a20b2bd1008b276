"""What all tasks share: the optimizer, the penalty, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from vpeft_bench.config import TrainConfig
from vpeft_bench.tasks.optim import Trained, adamw, schedule


@dataclass(frozen=True)
class Training:
    """How a task is trained.

    Attributes:
        config: the optimisation.
        parameters: what the optimizer trains, with the rate of each relative to ``config.lr``.
        steps_per_epoch: batches per epoch, for the schedule.
        penalty: gives a further term of the training loss, or None.
        fused_optimizer: update all parameters in one kernel.
    """

    config: TrainConfig
    parameters: Sequence[Trained]
    steps_per_epoch: int
    penalty: Callable[[], Tensor | None] = lambda: None
    fused_optimizer: bool = True


def _forgotten(prediction: Any) -> None:
    """Predictions are scored, and kept only where that is asked for."""


class Task(pl.LightningModule):
    """One kind of prediction, its training and its metrics.

    A task without ``training`` can only be evaluated.

    Attributes:
        on_prediction: called with what was predicted of each batch that is scored.

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
        self._frozen = {n for n, p in self.named_parameters() if not p.requires_grad}

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

    def confusion(self) -> Tensor | None:
        """``(K, K)`` counts by true and predicted class; None where they do not come in pairs."""
        return None

    # ---- what Lightning calls ------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, and the penalty where there is one."""
        assert self.training_plan is not None
        loss = self.loss(batch)
        penalty = self.training_plan.penalty()
        return loss if penalty is None else loss + penalty

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self.forget()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self.forget()

    def configure_optimizers(self) -> Any:
        """AdamW on the trained parameters; warm-up and schedule per step."""
        assert self.training_plan is not None
        plan = self.training_plan
        optimizer = adamw(plan.parameters, plan.config, fused=plan.fused_optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": schedule(optimizer, plan.config, plan.steps_per_epoch),
                "interval": "step",
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: trained parameters and buffers, not the frozen weights."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: t for n, t in state.items() if n not in self._frozen}
