from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vpeft_bench.config.identity import asked_hash
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import CardStatus, CardWhere, CostCard, Device, Measured, Timing
from vpeft_bench.records.run_record import (
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

DEMO_WEIGHTS = Weights("embedded", "sha256:0123456789ab", WeightsLabel.DEMO, "sha256:file")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what was read is kept: not in the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VPEFT_BENCH_CACHE", str(folder))
    return folder / "leaderboard"


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
    train: dict[str, Any] | None = None,
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
    precision: str = "fp32",
    network: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    per_class: int | None = None,
) -> RunRecord:
    """A believable run; every argument is something a test wants to differ."""
    options = {"rank": 8} if options is None else options
    asked = {
        "data": {"name": data, "benchmark": benchmark, "normalization": normalization},
        "backbone": {"name": backbone, "weights": weights and weights.label, **(network or {})},
        "method": {"name": method, **options},
        "protocol": {"name": protocol},
        "train": train or {"lr": 1e-3},
        "hardware": {"precision": precision},
        "head": head,
        "seed": seed,
    }
    if per_class is not None:
        asked["data"] |= {"per_class": per_class}
    if config_hash is None:
        identity = (weights and weights.identity) or "none"
        config_hash = asked_hash(asked, data_fingerprint or "", identity)
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
        asked=asked,
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


H100 = Device("cuda", "NVIDIA H100 80GB HBM3", 16, "550.54", 700.0, None)
A100 = Device("cuda", "NVIDIA A100-SXM4-80GB", 16, "550.54", 400.0, None)
CPU = Device("cpu", "AMD EPYC 7B13", 2, None, None, None)


def timing(median: float, batch_size: int) -> Timing:
    blocks = [median * factor for factor in (0.99, 0.995, 1.0, 1.005, 1.02)]
    return Timing(median, blocks[1], blocks[3], blocks, batch_size / median * 1000)


def make_card(
    *,
    method: str = "lora",
    options: dict[str, Any] | None = None,
    backbone: str = "demo_vit",
    network: dict[str, Any] | None = None,
    precision: str = "fp32",
    device: Device | None = H100,
    batch_size: int = 64,
    cost: dict[str, Any] | None = None,
    hardware: dict[str, Any] | None = None,
    step_ms: float = 128.0,
    status: CardStatus = CardStatus.OK,
    error: str | None = None,
    finished: str = "2026-01-02T03:04:05+00:00",
    labels: tuple[str, ...] = (),
    card_id: str | None = None,
) -> CostCard:
    """A believable card; LoRA on a ViT-B/16, unless told otherwise."""
    asked = {
        "method": {"name": method, **({"rank": 8} if options is None else options)},
        "backbone": {
            "name": backbone,
            "weights": "none",
            "image_size": None,
            "drop_path": 0.0,
            "model_args": {},
            **(network or {}),
        },
        "hardware": {"name": "auto", "precision": precision, "compile": False, **(hardware or {})},
        "cost": {
            "batch_size": batch_size,
            "inference_batch_size": 128,
            "steps": 50,
            **(cost or {}),
        },
    }
    on_cpu = device is not None and device.kind == "cpu"
    ok = status is CardStatus.OK
    weights, gradients, optimizer_state, activations = 344_409_432, 1_478_032, 2_956_064, 7 * 2**30
    peak = weights + gradients + optimizer_state + activations
    side = asked["backbone"]["image_size"] or 224
    measured = Measured(
        image_size=list(asked["cost"].get("image_size") or (side, side)),
        parameters=Parameters(method=294_912, head=76_900, total=371_812, model=86_170_468),
        stored_bytes=1_179_648,
        flops=cards.Flops(
            forward=35_201_000_000,
            training_step=70_500_000_001,
            plain=35_128_000_000,
            closed_form=35_127_656_448,
        ),
        training_step=timing(step_ms, batch_size),
        inference=timing(60.0, 128),
        inference_merged=timing(50.0, 128) if method == "lora" else None,
        merge_refusal=None if method == "lora" else "ssf cannot be merged",
        memory=cards.Memory(
            allocated=None if on_cpu else peak,
            reserved=None if on_cpu else peak + 2**28,
            resident_growth=peak if on_cpu else None,
            weights=weights,
            gradients=gradients,
            optimizer_state=optimizer_state,
            activations=activations,
            saved_for_backward=6 * 2**30,
        ),
        training_joules_per_image=None if on_cpu else 0.123456789,
        energy_note="a CPU reports none" if on_cpu else None,
    )
    return CostCard(
        card_id=card_id or f"{backbone}/{method}/{digest(asked, device)}",
        status=status,
        error=None if ok else error or "training step: out of memory",
        asked=asked,
        measured=measured if ok else None,
        where=CardWhere(
            versions={"torch": "2"},
            git=None,
            hostname="host",
            platform="Linux",
            python="3.11",
            started="2026-01-02T03:00:00+00:00",
            finished=finished,
            device=device,
        ),
        labels=list(labels),
    )


@pytest.fixture
def card() -> Callable[..., CostCard]:
    return make_card


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


@pytest.fixture
def save_cards(tmp_path: Path) -> Callable[..., Path]:
    """Write cards below a directory, under names that say nothing of them."""

    def save(*found: CostCard, below: str = "cost") -> Path:
        directory = tmp_path / below
        start = len(list(directory.rglob("card.json")))
        for number, card in enumerate(found, start):
            cards.write(card, directory / f"{number:03}" / "card.json")
        return directory

    return save
