"""What is known of a run so far, and the record that it makes, however far the run came."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpeft_bench.records import run_record as records
from vpeft_bench.records.data_facts import DataFacts
from vpeft_bench.records.environment import Environment, environment, utc_now
from vpeft_bench.records.run_record import Metrics, RunRecord, Split, Status
from vpeft_bench.runs.callbacks import Curves


@dataclass
class RunState:
    """One field for each thing that a record tells; None is not known, or not measured.

    Attributes:
        run_id, config_hash, asked, variant, uncounted, method_version: as in
            :class:`~vpeft_bench.records.run_record.RunRecord`.
        weights_identity: what of the weights counts.
        data_fingerprint, data: as in :class:`~vpeft_bench.records.run_record.Where`.
        labels: notices so far.
        curves: learning curves and the clock of training.
        environment: of the start: the checkout may change during a long run.
        eval_split, eval_images: what is scored.
        data_seconds, setup_seconds, selection_seconds, features_seconds: see
            :class:`~vpeft_bench.records.run_record.Seconds`.

    The others are as in :class:`~vpeft_bench.records.run_record.Happened` and
    :class:`~vpeft_bench.records.run_record.Where`.
    """

    run_id: str
    config_hash: str
    asked: dict[str, Any]
    variant: str
    uncounted: list[str]
    method_version: int
    weights_identity: str
    data_fingerprint: str
    data: DataFacts
    labels: list[str]
    curves: Curves
    eval_split: Split
    eval_images: int
    started: str = field(default_factory=utc_now)
    environment: Environment = field(default_factory=environment)

    device: str | None = None
    threads: int | None = None
    weights: records.Weights | None = None
    preprocessing: records.Preprocessing | None = None
    parameters: records.Parameters | None = None
    data_seconds: float | None = None
    setup_seconds: float | None = None
    selection_seconds: float | None = None
    features_seconds: float | None = None
    frozen_features: records.FrozenFeatures | None = None
    peak_memory_bytes: int | None = None
    peak_memory_note: str | None = None
    last_epoch: Metrics | None = None
    selected_epoch: Metrics | None = None
    diverged: records.Diverged | None = None
    stored_bytes: records.StoredBytes = field(default_factory=records.StoredBytes)
    checksums: dict[str, str] = field(default_factory=dict)

    def metrics(self, epoch: int, values: dict[str, float | None]) -> Metrics:
        """What is recorded of an evaluation; the first value is the headline."""
        known = {name: _finite(value) for name, value in values.items()}
        return Metrics(self.eval_split, epoch, self.eval_images, next(iter(known)), known)

    def record(self, status: Status, error: str | None) -> RunRecord:
        """The record of a run that ends now; only one that is ok vouches for files."""
        curves, ok = self.curves, status is Status.OK
        trained = curves.train_seconds > 0
        happened = records.Happened(
            last_epoch=self.last_epoch if ok else None,
            selected_epoch=self.selected_epoch if ok else None,
            curves={name: list(map(_finite, values)) for name, values in curves.curves.items()},
            parameters=self.parameters,
            stored_bytes=self.stored_bytes if ok else records.StoredBytes(),
            seconds=records.Seconds(
                data=self.data_seconds,
                setup=self.setup_seconds,
                selection=self.selection_seconds,
                features=self.features_seconds,
                train=curves.train_seconds if trained else None,
                eval=curves.eval_seconds if curves.eval_seconds > 0 else None,
            ),
            train_images_per_second=curves.images / curves.train_seconds if trained else None,
            frozen_features=self.frozen_features,
            peak_memory_bytes=self.peak_memory_bytes,
            peak_memory_note=self.peak_memory_note,
            resumed=curves.resumed,
            train_loss=_finite(curves.curves["train_loss"][-1]) if curves.curves else None,
            diverged=self.diverged,
            checksums=self.checksums if ok else {},
        )
        where = records.Where(
            **self.environment,
            started=self.started,
            finished=utc_now(),
            device=self.device,
            threads=self.threads,
            data_fingerprint=self.data_fingerprint,
            data=self.data,
            weights=self.weights,
            preprocessing=self.preprocessing,
        )
        return RunRecord(
            run_id=self.run_id,
            config_hash=self.config_hash,
            status=status,
            error=error,
            asked=self.asked,
            happened=happened,
            where=where,
            labels=self.labels,
            variant=self.variant,
            uncounted=self.uncounted,
            method_version=self.method_version,
        )


def run_id(directory: Path, results_dir: str) -> str:
    """What names a run: its place below the results."""
    return str(directory.relative_to(results_dir))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
