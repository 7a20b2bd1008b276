"""A number that is not finite ends the run: no score, no weights, and the word for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.conftest import Cli
from tests.running import run_here
from tests.runs.test_dense_run import boxes_on_grey
from tests.runs.test_resuming import maps_of_halves
from tests.runs.test_sweep import results_of
from vpeft_bench.config.sections import TrainConfig
from vpeft_bench.errors import DivergedError
from vpeft_bench.methods.data_pass import require_finite
from vpeft_bench.records.run_record import Status, find, read
from vpeft_bench.runs.divergence import Divergence
from vpeft_bench.tasks.base import Training
from vpeft_bench.tasks.classification.module import Classification
from vpeft_bench.tasks.optim import Trained

__all__ = ["boxes_on_grey", "maps_of_halves"]

TOO_FAST = ("train.lr=1e30", "train.warmup_epochs=0", "train.epochs=3")


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "linear"])
def test_a_diverged_run(tmp_path: Path, tiny_data: Path, method: str) -> None:
    """No epoch follows, nothing is scored or stored, and it is not gone on from."""
    options = ("data=imagelist", f"data.root={tiny_data}", f"method={method}", *TOO_FAST)
    for _ in range(2):  # asked for again, it runs again
        with pytest.raises(DivergedError, match=r"the loss is not finite in epoch \d, step \d"):
            run_here(tmp_path, *options)
        ((path, record),) = find([tmp_path]).records
        happened = record.happened
        assert record.status is Status.FAILED
        assert record.error is not None
        assert record.error.startswith("diverged: the loss")
        assert happened.diverged is not None
        assert happened.diverged.quantity == "loss"
        assert len(happened.curves.get("epoch", [])) == happened.diverged.epoch - 1
        assert (happened.last_epoch, happened.checksums, happened.resumed) == (None, {}, 0)
        left = {file.name for file in path.parent.iterdir()}
        assert left <= {"record.json", "metrics.csv"}


def test_a_rerun_that_diverges_leaves_nothing_of_the_run_before(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("data=imagelist", f"data.root={tiny_data}", "method=lora", "train.epochs=1")
    done = run_here(tmp_path, *options)
    assert (done.directory / "delta.safetensors").exists()

    def nothing(self: Classification, batch: Any) -> Tensor:
        return self(batch[0]).sum() * torch.nan

    monkeypatch.setattr(Classification, "loss", nothing)
    with pytest.raises(DivergedError, match="epoch 1, step 1"):
        run_here(tmp_path, *options, "rerun=true")
    assert read(done.directory / "record.json").status is Status.FAILED
    assert not list(done.directory.glob("*.safetensors"))


def test_a_sweep_goes_on(cli: Cli, tmp_path: Path, tiny_data: Path) -> None:
    done = cli(
        "-m",
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=linear",
        "train.warmup_epochs=0",
        "train.epochs=1",
        "train.lr=1e30,1e-3",
        "hardware.threads=1",
    )
    assert done.returncode == 1
    assert results_of(done.stdout) == ["failed", "done"], done.stdout + done.stderr
    assert "diverged: the loss" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    records = [record for _, record in find([tmp_path]).records]
    assert sorted(record.outcome for record in records) == ["diverged", "ok"]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_dense_tasks(tmp_path: Path, boxes_on_grey: Path, maps_of_halves: Path, task: str) -> None:
    data = {
        "detection": ("data=coco_json", f"data.root={boxes_on_grey}", "head=faster_rcnn"),
        "segmentation": (
            "data=voc_masks",
            f"data.root={maps_of_halves}",
            "data.num_classes=2",
            "head=linear",
        ),
    }[task]
    options = (*data, "method=bitfit", "train.batch_size=3", *TOO_FAST, "train.clip_norm=null")
    with pytest.raises(DivergedError, match="not finite in epoch 1"):
        run_here(tmp_path, *options)


# ---- the callback alone -------------------------------------------------------------------------


class Odd(nn.Module):
    """A linear classifier of two numbers, and an infinity that is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("meant", torch.tensor([float("inf")]))
        self.register_buffer("statistic", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) to (B, 3)."""
        return self.linear(x)


def train(
    inputs: Tensor, *, every: int | None = None, clip: float | None = None, hook: Any = None
) -> None:
    """One epoch of batches ``inputs`` ``(steps, B, 2)``, then an evaluation of the same."""
    model = Odd()
    plan = Training(TrainConfig(lr=1e-3), [Trained(p) for p in model.parameters()], len(inputs))
    task = Classification(model, 3, lambda x: x, plan)
    batches = [(x, torch.zeros(len(x), dtype=torch.long)) for x in inputs]
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=clip,
        callbacks=[*([hook] if hook else []), Divergence(every)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loader)
    trainer.test(task, loader, verbose=False)


def test_what_is_finite_passes() -> None:
    train(torch.randn(5, 4, 2))
    train(torch.randn(5, 4, 2), every=2, clip=1.0)


@pytest.mark.parametrize("every", [1, 3, 16])
@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_the_step_is_named_however_late_it_is_read(every: int, step: int) -> None:
    inputs = torch.randn(8, 4, 2)
    inputs[step - 1] = torch.nan
    with pytest.raises(DivergedError) as caught:
        train(inputs, every=every)
    assert (caught.value.quantity, caught.value.epoch, caught.value.step) == ("loss", 1, step)


def test_a_gradient_that_is_not_finite_where_the_loss_is() -> None:
    class Spoil(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.global_step == 2:
                next(pl_module.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]

    with pytest.raises(DivergedError, match="the gradient norm is not finite in epoch 1, step 3"):
        train(torch.randn(5, 4, 2), clip=1.0, hook=Spoil())
    with pytest.raises(DivergedError, match="the loss is not finite in epoch 1, step 4"):
        train(torch.randn(5, 4, 2), hook=Spoil())


def test_weights_and_buffers_are_looked_at_after_the_epoch() -> None:
    class Spoil(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.model.statistic.fill_(torch.nan)  # type: ignore[union-attr, operator]

    with pytest.raises(DivergedError, match=r"the weight statistic is not finite in epoch 1$"):
        train(torch.randn(3, 4, 2), hook=Spoil())


def test_the_largest_of_nan_is_no_prediction() -> None:
    """Weights are finite, and so was every loss; the logits of the evaluation are not."""

    class Spoil(pl.Callback):
        def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.model.linear.weight.data.fill_(3e38)  # type: ignore[union-attr, operator]

    with pytest.raises(DivergedError, match="the output in evaluation is not finite in epoch 1"):
        train(torch.ones(3, 4, 2), hook=Spoil())


def test_nothing_is_ranked_by_numbers_that_are_none() -> None:
    require_finite([torch.ones(2), torch.zeros(3)], "gradient")
    with pytest.raises(DivergedError, match="the gradient is not finite before training"):
        require_finite([torch.ones(2), torch.tensor([1.0, torch.nan])], "gradient")
