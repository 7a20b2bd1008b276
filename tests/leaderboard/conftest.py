from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vpeft_bench.record import (
    Happened,
    Metrics,
    Parameters,
    RunRecord,
    Seconds,
    Split,
    Status,
    StoredBytes,
    Weights,
    WeightsLabel,
    Where,
    write,
)

DEMO_WEIGHTS = Weights("embedded", "sha256:0123456789ab", WeightsLabel.DEMO)


def digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:10]


def make_run(
    top1: float = 50.0,
    *,
    data: str = "demo/digits",
    benchmark: str = "demo",
    method: str = "lora",
    options: dict[str, Any] | None = None,
    seed: int = 0,
    config_hash: str | None = None,
    protocol: str = "final",
    split: Split | None = None,
    backbone: str = "demo_vit",
    weights: Weights | None = DEMO_WEIGHTS,
    normalization: str = "weights",
    status: Status = Status.OK,
    error: str | None = None,
    finished: str = "2026-01-02T03:04:05+00:00",
    data_fingerprint: str | None = "d1",
    labels: tuple[str, ...] = (),
    peak_memory_bytes: int | None = None,
) -> RunRecord:
    """A believable run; every argument is something a test wants to differ."""
    options = {"rank": 8} if options is None else options
    config_hash = config_hash or digest(
        protocol, data, backbone, weights, normalization, method, options
    )
    if split is None:
        split = Split.TEST if protocol == "final" else Split.VAL
    ok = status is Status.OK
    happened = Happened(
        last_epoch=Metrics(
            split, 10, 797, "top1", {"top1": top1, "mean_per_class_accuracy": top1 / 2}
        ),
        parameters=Parameters(method=1000, head=200, total=1200, model=50_000),
        stored_bytes=StoredBytes(delta=4000, head=800),
        seconds=Seconds(data=1.0, setup=2.0, train=30.0 + seed, eval=0.5),
        train_images_per_second=250.0,
        peak_memory_bytes=peak_memory_bytes,
        peak_memory_note=None if peak_memory_bytes else "the CPU does not count it",
    )
    return RunRecord(
        run_id=f"{protocol}/{data}/{backbone}/{method}/{config_hash}/seed{seed}",
        config_hash=config_hash,
        status=status,
        error=None if ok else error or "RuntimeError: it broke",
        asked={
            "data": {"name": data, "benchmark": benchmark, "normalization": normalization},
            "backbone": {"name": backbone, "weights": weights and weights.label},
            "method": {"name": method, **options},
            "protocol": {"name": protocol},
            "hardware": {"precision": "fp32"},
            "seed": seed,
        },
        happened=happened if ok else Happened(),
        where=Where(
            versions={"torch": "2"},
            git=None,
            hostname="host",
            platform="Linux",
            python="3.11",
            started="2026-01-02T03:00:00+00:00",
            finished=finished,
            device="some CPU",
            threads=2,
            data_fingerprint=data_fingerprint,
            weights=weights,
        ),
        labels=list(labels),
    )


@pytest.fixture
def run() -> Callable[..., RunRecord]:
    return make_run


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write records below a directory, under names that say nothing of them."""

    def save(*records: RunRecord, below: str = "runs") -> Path:
        directory = tmp_path / below
        start = len(list(directory.rglob("record.json")))
        for number, record in enumerate(records, start):
            write(record, directory / f"{number:03}" / "record.json")
        return directory

    return save
