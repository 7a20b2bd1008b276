"""``hardware.devices``: a run on several devices is the run on one."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.running import config_of, run_here
from vpeft_bench.data.loading import EpochSampler
from vpeft_bench.errors import VpeftBenchError
from vpeft_bench.metric_names import BoxMetric
from vpeft_bench.metrics.boxes import BoxMetrics
from vpeft_bench.records import run_record
from vpeft_bench.records.run_record import Status
from vpeft_bench.runs import team
from vpeft_bench.runs.callbacks import Curves
from vpeft_bench.tasks.segmentation.module import Segmentation

# ---- which pictures each device reads ------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "batch", "accumulate", "devices"), [(200, 33, 1, 2), (200, 33, 2, 2), (10, 4, 1, 3)]
)
def test_devices_share_each_batch(size: int, batch: int, accumulate: int, devices: int) -> None:
    whole = EpochSampler(size, batch, seed=3, shuffle=True)
    samplers = [EpochSampler(size, batch, seed=3, shuffle=True) for _ in range(devices)]
    for rank, sampler in enumerate(samplers):
        sampler.parts, sampler.rank, sampler.ranks = accumulate * devices, rank, devices
    parts = [[indices for _, indices in sampler] for sampler in samplers]
    assert {len(own) for own in parts} == {len(samplers[0])} == {len(whole) * accumulate}
    for at, (_, together) in enumerate(whole):
        steps = range(at * accumulate, (at + 1) * accumulate)
        places = [(step, rank) for step in steps for rank in range(devices)]
        shares = [samplers[rank].share(step) for step, rank in places]
        assert sum(shares) == pytest.approx(accumulate * devices)
        # What is weighted by nothing is there for its device to have something to do.
        counted = [
            parts[rank][step] for (step, rank), share in zip(places, shares, strict=True) if share
        ]
        np.testing.assert_array_equal(np.concatenate(counted), together)
        weights = [share * len(together) / len(shares) for share in shares if share]
        assert weights == pytest.approx([len(part) for part in counted])


@pytest.mark.parametrize(("size", "batch", "devices"), [(100, 16, 2), (100, 64, 3), (5, 1, 4)])
def test_devices_share_an_evaluation(size: int, batch: int, devices: int) -> None:
    whole = [indices.tolist() for _, indices in EpochSampler(size, batch, seed=0, shuffle=False)]
    found = []
    for rank in range(devices):
        sampler = EpochSampler(size, batch, seed=0, shuffle=False)
        sampler.take(rank, devices)
        own = [indices.tolist() for _, indices in sampler]
        assert len(own) == len(sampler) >= 1
        found += own
    assert list(itertools.chain(*found)) == list(range(size))
    if len(whole) >= devices:  # the very batches of one device: bit for bit its outputs
        assert found == whole


# ---- gradients -----------------------------------------------------------------------------------


def test_what_is_averaged_are_the_gradients_of_what_some_device_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two devices by turns: the second has twice the gradients, and uses one parameter less."""
    used, unused, once = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    used.grad, once.grad = torch.full((3,), 1.0), torch.full((3,), 4.0)
    sent = []

    def as_if_reduced(flat: torch.Tensor) -> None:
        sent.append(flat.numel())
        flat += torch.tensor([2.0] * 3 + [0.0] * 3)

    class Two(team.Team):
        def gather(self, value: Any) -> Any:
            return [value, value[:1]]

    monkeypatch.setattr(torch.distributed, "all_reduce", as_if_reduced)
    mean = team.MeanGradients(Two(0, 2))
    mean.average([used, unused, once])
    assert used.grad is not None
    assert once.grad is not None
    assert used.grad.tolist() == [1.5] * 3
    assert once.grad.tolist() == [2.0] * 3
    assert unused.grad is None  # or the optimizer would decay it
    assert sent == [6]  # at once


# ---- metrics -------------------------------------------------------------------------------------


def test_scores_of_two_devices_are_those_of_all_pictures() -> None:
    """Of label maps and of boxes; those of classes are in the runs below."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.randint(3, (4, 2, 8, 8), generator=draw)
    network: Any = torch.nn.Module()
    network.decoder = torch.nn.Identity()
    whole, *halves = (Segmentation(network, 3, lambda images: images) for _ in range(3))
    for at, (found, there) in enumerate(maps):
        whole.scores.update(found, there)
        halves[at // 2].scores.update(found, there)
    halves[0].combine([half.scored() for half in halves])
    assert halves[0].metrics() == whole.metrics()

    all_boxes, *parts = (BoxMetrics(2, False, BoxMetric.voc07) for _ in range(3))
    for at in range(4):
        corners = torch.rand(3, 2, generator=draw) * 20
        boxes = torch.cat([corners, corners + 10], dim=1)
        labels, scores = torch.tensor([0, 1, 1]), torch.rand(3, generator=draw)
        truth = {"ignored": torch.zeros(3).bool(), "areas": torch.full((3,), 100.0)}
        truth |= {"boxes": boxes + at, "labels": labels}
        for metrics in (all_boxes, parts[at // 2]):
            metrics.update([{"boxes": boxes, "labels": labels, "scores": scores}], [truth])
    together = BoxMetrics(2, False, BoxMetric.voc07)
    for part in parts:
        together.extend(pickle.loads(pickle.dumps(part)))
    assert together.compute() == all_boxes.compute()
    assert together.per_class() == all_boxes.per_class()


# ---- whole runs ----------------------------------------------------------------------------------

OPTIONS = ("data=imagelist", "method=lora", "train.epochs=3", "train.batch_size=33")


def _trained(results: Path, tiny_data: Path, *options: str) -> run_record.RunRecord:
    outcome = run_here(results, f"data.root={tiny_data}", *OPTIONS, *options)
    assert outcome.record is not None
    assert outcome.record.status is Status.OK
    return outcome.record


def _difference(one: Path, other: Path, name: str) -> float:
    tensors = [load_file(next(results.rglob(name))) for results in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    return max(float((tensors[0][n] - tensors[1][n]).abs().max()) for n in tensors[0])


@pytest.mark.parametrize(
    ("options", "most"),
    [
        # 160 pictures in batches of 33, the last of 28 in 4 parts; scored after every epoch.
        (("train.optimizer=sgd", "protocol=select", "hardware.accumulate=2"), 1e-6),
        # 200 pictures, the last batch of 2. AdamW makes a step of a rounding error.
        pytest.param(("train.optimizer=adamw",), 1e-4, marks=pytest.mark.slow),
        # Statistics of the whole batch; its scale is free, so that steps differ a little more.
        pytest.param(
            ("train.optimizer=sgd", "head=batch_norm", "train.batch_size=32"),
            1e-5,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sgd", "adamw", "batch norm"],
)
def test_two_devices_give_the_weights_and_metrics_of_one(
    tmp_path: Path, tiny_data: Path, options: tuple[str, ...], most: float
) -> None:
    one = _trained(tmp_path / "one", tiny_data, *options)
    two = _trained(tmp_path / "two", tiny_data, *options, "hardware.devices=2")
    assert two.run_id == one.run_id
    for name in ("delta.safetensors", "head.safetensors"):
        assert _difference(tmp_path / "one", tmp_path / "two", name) <= most
    assert one.happened.last_epoch is not None
    assert two.happened.last_epoch is not None
    assert two.happened.last_epoch.values == pytest.approx(one.happened.last_epoch.values, abs=1e-3)
    for name in set(one.happened.curves) - {"train_seconds"}:
        pair = (record.happened.curves[name] for record in (two, one))
        assert next(pair) == pytest.approx(next(pair), rel=1e-4), name
    assert one.where.device is not None
    assert two.where.device == f"{one.where.device}, 2 processes"
    rates = [(r.happened.train_images_per_second, r.happened.seconds.train) for r in (one, two)]
    images = [rate * seconds for rate, seconds in rates if rate and seconds]
    assert images == pytest.approx([3 * (160 if "protocol=select" in options else 200)] * 2)


@pytest.mark.slow
def test_a_run_that_lost_a_device_ends_at_once_and_goes_on_when_started_again(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders: list[Any] = []
    join, write = team._Leader.join, Curves.on_train_epoch_end

    def joined(self: Any, device: torch.device) -> None:
        join(self, device)
        leaders.append(self)

    killed_at = 0.0

    def killing(self: Curves, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        nonlocal killed_at
        if trainer.current_epoch == 1:
            os.kill(leaders[0]._helpers[0].pid, signal.SIGKILL)
            killed_at = time.monotonic()
        write(self, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(team._Leader, "join", joined)
        patch.setattr(Curves, "on_train_epoch_end", killing)
        with pytest.raises(VpeftBenchError, match=r"device 1 \(of 0 to 1\) was ended by SIGKILL"):
            _trained(tmp_path, tiny_data, "hardware.devices=2")
    assert 0 < time.monotonic() - killed_at < 10
    record = run_record.read(next(tmp_path.rglob("record.json")))
    assert record.status is Status.FAILED
    assert "goes on from the last checkpoint" in str(record.error)
    assert not torch.distributed.is_initialized()

    again = _trained(tmp_path, tiny_data)  # on one device, which is the same run
    assert again.happened.resumed == 1
    assert again.happened.curves["epoch"] == [1, 2, 3]


@pytest.mark.slow
def test_helpers_end_with_their_leader() -> None:
    """However that ends: nobody is left to hold a device."""
    leader = team._Leader(2)
    (helper,) = leader._helpers
    assert helper.stdin is not None
    helper.stdin.close()  # as the system does for a leader that was killed
    assert helper.wait(timeout=120) == 1
    leader.close()


def test_an_error_of_a_helper_is_the_runs(tiny_data: Path) -> None:
    """It is told as it would be on one device, not as a connection that was lost."""
    leader = team._Leader(2)
    try:
        config = config_of("data=imagelist", f"data.root={tiny_data}/none", "hardware.devices=2")
        leader.tell(config)
        with pytest.raises(VpeftBenchError, match="none"):
            leader.join(torch.device("cpu"))
    finally:
        leader.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["head=batch_norm", "hardware.devices=9"],
            ["the last batch has 8 pictures, and head=batch_norm needs some", "leave head="],
        ),
        (["hardware.devices=33", "hardware.accumulate=2"], ["has 32 pictures, and 66 parts"]),
        (["hardware.devices=0"], ["hardware.devices=0"]),
    ],
)
def test_what_cannot_be_shared_is_refused(
    cli: Cli, tiny_data: Path, options: list[str], said: list[str]
) -> None:
    shared = ("hardware.devices=2", *options)
    done = cli("data=imagelist", f"data.root={tiny_data}", "method=linear", *shared)
    assert done.returncode == 2
    assert all(text in done.stderr for text in said), done.stderr


def test_a_loss_over_all_pictures_of_a_batch_is_refused(cli: Cli) -> None:
    done = cli("data=demo/glyphs_retrieval", "method=linear", "hardware.devices=2")
    assert done.returncode == 2
    assert "the loss of retrieval compares all pictures of a batch" in done.stderr


@pytest.mark.slow
def test_predictions_and_kept_features_of_two_devices(cli: Cli, tmp_path: Path) -> None:
    """Of a method whose features are kept, by the command line."""
    for number in (1, 2):
        done = cli(
            "data=demo/digits",
            "method=linear",
            "train.epochs=2",
            "predictions=true",
            "hardware=cpu",
            f"hardware.devices={number}",
            f"results_dir={number}",
        )
        assert done.returncode == 0, done.stderr + done.stdout
    from pyarrow import parquet

    tables = [parquet.read_table(next((tmp_path / str(n)).rglob("logits.parquet"))) for n in (1, 2)]
    logits = [np.stack(table["logits"].to_numpy()) for table in tables]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)
    assert tables[0]["index"].to_pylist() == tables[1]["index"].to_pylist()
    record = json.loads(next((tmp_path / "2").rglob("record.json")).read_text())
    assert record["happened"]["frozen_features"]["bytes"] > 0
