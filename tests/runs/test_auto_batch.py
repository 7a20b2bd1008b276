"""``hardware.auto_batch``: a run that does not fit goes on with smaller parts of its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.running import config_of, run_here
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.records.run_record import Status
from vpeft_bench.runs.auto_batch import smaller_batches
from vpeft_bench.tasks.classification.module import Classification

OPTIONS = ("data=imagelist", "method=lora", "train.epochs=2", "train.optimizer=sgd")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pictures that a device has memory for, in training and in evaluation."""
    most = {"loss": 8, "score": 20}
    for name in most:

        def needing(self: Classification, batch: Any, name: str = name, compute: Any = None) -> Any:
            if len(batch[1]) > most[name]:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {len(batch[1])} pictures")
            return compute(self, batch)

        compute = getattr(Classification, name)
        monkeypatch.setattr(
            Classification,
            name,
            lambda self, batch, needing=needing, compute=compute: needing(
                self, batch, compute=compute
            ),
        )
    return most


def test_a_run_that_does_not_fit_is_divided_until_it_does(
    tmp_path: Path, tiny_data: Path, room: dict[str, int]
) -> None:
    options = (*OPTIONS, f"data.root={tiny_data}", "hardware.eval_batch_size=60")
    divided = run_here(tmp_path / "divided", *options, "hardware.auto_batch=true").record
    assert divided is not None
    assert divided.status is Status.OK
    # 32 pictures in parts of 8; 60, 30 and then 15 at once.
    assert divided.asked["hardware"]["accumulate"] == 4
    assert divided.asked["hardware"]["eval_batch_size"] == 15
    assert divided.asked["train"]["batch_size"] == 32

    room |= {"loss": 1000, "score": 1000}
    whole = run_here(tmp_path / "whole", *options).record
    assert whole is not None
    assert divided.run_id == whole.run_id
    assert divided.happened.last_epoch == whole.happened.last_epoch or (
        divided.happened.last_epoch is not None
        and whole.happened.last_epoch is not None
        and divided.happened.last_epoch.values
        == pytest.approx(whole.happened.last_epoch.values, rel=1e-4)
    )
    for name in ("delta.safetensors", "head.safetensors"):
        one, other = (load_file(next((tmp_path / k).rglob(name))) for k in ("whole", "divided"))
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=0, atol=1e-6)


def test_a_run_that_fits_in_no_way_says_so(
    tmp_path: Path, tiny_data: Path, room: dict[str, int]
) -> None:
    room["loss"] = 0
    outcome = run_here(tmp_path, *OPTIONS, f"data.root={tiny_data}", "hardware.auto_batch=true")
    assert outcome.record is not None
    assert outcome.record.status is Status.OOM
    assert outcome.record.asked["hardware"]["accumulate"] == 32  # single pictures


@pytest.mark.parametrize("option", ["head=batch_norm", "hardware.accumulate=32"])
def test_what_cannot_be_divided_is_not(tiny_data: Path, option: str) -> None:
    config = config_of("data=imagelist", f"data.root={tiny_data}", "method=linear", option)
    assert smaller_batches(config, open_dataset(config.data), scoring=False) is None
