"""The frame of runs: one row per record, numbers as numbers.

What of a configuration all its seeds share is worked out once. Whether a record is shown is
decided by :mod:`vpeft_bench.leaderboard.admitted`; the frame has what that needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd
import pyarrow as pa

from vpeft_bench.config.identity import scientific, scientific_hash, whole_task
from vpeft_bench.config.recipes import how_chosen
from vpeft_bench.leaderboard.asked import subject, text_in, weights_identity
from vpeft_bench.leaderboard.departures import settings_of
from vpeft_bench.leaderboard.origin import origin, overrides
from vpeft_bench.metric_names import METRICS
from vpeft_bench.records.run_record import RunRecord, Split, Status, WeightsLabel

PROTOCOL_SPLIT = {"select": Split.VAL, "final": Split.TEST}
"""Which pictures a protocol scores."""
METRIC = "metric_"
"""Before the name of a metric: the column of its values."""
_KEPT = 64
"""Configurations that are remembered; the seeds of one lie beside each other."""

TEXT, CATEGORY = pa.string(), pa.dictionary(pa.int32(), pa.string())
WHOLE, NUMBER, DIGEST = pa.int64(), pa.float64(), pa.uint64()
TIME = pa.timestamp("us", tz="UTC")

SCHEMA: dict[str, pa.DataType] = {
    # Which run it is, and how it ended.
    "run_id": TEXT,
    "config_hash": CATEGORY,
    "seed": WHOLE,
    "status": CATEGORY,
    "error": TEXT,
    "finished": TIME,
    # What was compared with what: an entry, on a data set.
    "protocol": CATEGORY,
    "name": CATEGORY,
    "method": CATEGORY,
    "options": CATEGORY,
    "backbone": CATEGORY,
    "weights": CATEGORY,
    "weights_fingerprint": CATEGORY,
    "normalization": CATEGORY,
    "precision": CATEGORY,
    "per_class": CATEGORY,
    "benchmark": CATEGORY,
    "data": CATEGORY,
    "head": CATEGORY,
    "head_options": CATEGORY,
    "network": CATEGORY,
    "settings": CATEGORY,
    # What its variant says: see `_of_variant`.
    "variant": CATEGORY,
    "chosen": CATEGORY,
    "tuning_budget": WHOLE,
    "tuning_space": CATEGORY,
    "tuning_failed": WHOLE,
    "tuning_seconds": NUMBER,
    "tuning_device": CATEGORY,
    # What it reached, and what it took.
    "split": CATEGORY,
    "epoch": WHOLE,
    "images": WHOLE,
    "metric": CATEGORY,
    "value": NUMBER,
    "train_loss": NUMBER,
    "parameters_method": WHOLE,
    "parameters_head": WHOLE,
    "parameters_total": WHOLE,
    "stored_delta_bytes": WHOLE,
    "train_seconds": NUMBER,
    "train_images_per_second": NUMBER,
    "peak_memory_bytes": WHOLE,
    "device": CATEGORY,
    "data_fingerprint": CATEGORY,
    "image_format": CATEGORY,
    "labels": CATEGORY,
    # Where it comes from, see `origin`.
    "overrides": CATEGORY,
    "commit": CATEGORY,
    "versions": CATEGORY,
    # What decides whether it is shown.
    "unplaceable": CATEGORY,
    "true_hash": CATEGORY,
    "claim": DIGEST,
    "backbone_asked": DIGEST,
    "content": DIGEST,
}
"""The columns of every frame of runs; one more, of numbers, for each metric that some run has."""


class _Configuration(NamedTuple):
    """What a configuration says, whatever the seed.

    Attributes:
        said: by column.
        kept: all of it that is scientific.
        claimed: the same as bytes.
    """

    said: dict[str, Any]
    kept: dict[str, Any]
    claimed: bytes


class Rows:
    """Records as rows; what a configuration says is remembered for its other seeds."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Configuration] = {}
        self._hashes: dict[tuple[bytes, str, str], str] = {}

    def row(self, record: RunRecord) -> dict[str, Any]:
        """One record, by column."""
        happened, where, last = record.happened, record.where, record.happened.last_epoch
        weights, counts, seed = where.weights, happened.parameters, record.asked.get("seed")
        configuration = self._configuration(record)
        random = weights is not None and weights.label is WeightsLabel.RANDOM
        row: dict[str, Any] = {
            **configuration.said,
            **origin(record),
            "run_id": record.run_id,
            "config_hash": record.config_hash,
            "seed": seed if type(seed) is int and seed >= 0 else None,
            "status": record.outcome,
            "error": " ".join((record.error or "").split()) or None,
            "finished": datetime.fromisoformat(where.finished),
            "weights": weights and weights.label.value,
            # Random weights are drawn anew for every seed; their hash would tear the seeds apart.
            "weights_fingerprint": weights and ("" if random else weights.fingerprint or ""),
            "train_loss": happened.train_loss,
            "stored_delta_bytes": happened.stored_bytes.delta,
            "train_seconds": happened.seconds.train,
            "train_images_per_second": happened.train_images_per_second,
            "peak_memory_bytes": happened.peak_memory_bytes,
            "device": where.device,
            "data_fingerprint": where.data_fingerprint,
            "image_format": where.data and where.data.image_format,
            "labels": json.dumps(record.labels),
            "true_hash": self._true_hash(record, configuration),
            "claim": _digest(configuration.claimed + (where.data_fingerprint or "").encode()),
            "content": digest(record),
        }
        if counts is not None:
            row |= {
                "parameters_method": counts.method,
                "parameters_head": counts.head,
                "parameters_total": counts.total,
            }
        if last is not None:
            row |= {"split": last.split.value, "epoch": last.epoch, "images": last.images}
            row |= {"metric": last.headline, "value": last.value}
            row |= {f"{METRIC}{name}": value for name, value in last.values.items()}
        row["unplaceable"] = row["unplaceable"] or _out_of_place(row, record.status)
        return row

    def _configuration(self, record: RunRecord) -> _Configuration:
        asked = {key: value for key, value in record.asked.items() if key != "seed"}
        key = _bytes([asked, record.uncounted, record.method_version, record.variant])
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
                self._hashes.clear()
            kept = scientific(record.asked, record.uncounted)
            self._known[key] = _Configuration(_said(record, kept), kept, _bytes(kept))
        return self._known[key]

    def _true_hash(self, record: RunRecord, configuration: _Configuration) -> str | None:
        """The hash of what was asked, the data and the weights; None where that is not told."""
        weights, data = weights_identity(record), record.where.data_fingerprint
        if weights is None or data is None:
            return None
        version = record.method_version
        key = (configuration.claimed, data, f"{weights}\0{version}")
        if key not in self._hashes:
            self._hashes[key] = scientific_hash(configuration.kept, data, weights, version)
        return self._hashes[key]


def _said(record: RunRecord, kept: dict[str, Any]) -> dict[str, Any]:
    asked = record.asked
    columns: dict[str, Any] = {
        "name": record.variant,
        "backbone_asked": _digest(json.dumps(asked.get("backbone"), sort_keys=True).encode()),
        "unplaceable": None,
    }
    head = asked.get("head")
    try:
        settings = settings_of(kept, whole_task(asked))
        columns |= {
            "protocol": text_in(asked, "protocol", "name"),
            **subject(record),
            **_of_variant(asked),
            "normalization": text_in(asked, "data", "normalization"),
            "per_class": str(asked["data"].get("per_class") or ""),
            "benchmark": text_in(asked, "data", "benchmark"),
            "data": text_in(asked, "data", "name"),
            "head": str(head["name"]) if isinstance(head, dict) and "name" in head else "",
            "settings": json.dumps(settings, sort_keys=True),
            "overrides": json.dumps(overrides(record, settings)),
        }
    except Exception as error:  # whatever a damaged record raises costs only itself
        columns["unplaceable"] = str(error)
    return columns


def _of_variant(asked: dict[str, Any]) -> dict[str, Any]:
    """What the variant brings; a column more is a line here, in `SCHEMA` and in ``columns``."""
    said = asked.get("variant")
    variant = said if isinstance(said, dict) else {}
    return {
        "variant": str(variant.get("name") or ""),
        "chosen": how_chosen(asked),
        **_of_tuning(variant.get("tuning") or {}, str((asked.get("data") or {}).get("name"))),
    }


def _of_tuning(tuning: dict[str, Any], data: str) -> dict[str, Any]:
    """What the search was and cost that the variant comes from, on one data set."""
    here = tuning.get("per_data", {}).get(data, {})
    return {
        "tuning_budget": tuning.get("budget"),
        "tuning_space": tuning.get("space", ""),
        "tuning_failed": here.get("failed"),
        "tuning_seconds": here.get("seconds"),
        "tuning_device": here.get("device", ""),
    }


def _out_of_place(row: dict[str, Any], status: Status) -> str | None:
    """Why a run is in no table, though its configuration has one."""
    protocol, split = row["protocol"], row.get("split")
    if protocol not in PROTOCOL_SPLIT:
        known = ", ".join(sorted(PROTOCOL_SPLIT))
        return f"no table is defined for protocol {protocol!r}; there are: {known}"
    wanted = PROTOCOL_SPLIT[protocol]
    if status is Status.OK and split != wanted:
        return (
            f"protocol {protocol!r} scores {wanted} images, "
            f"yet the last epoch was scored on {split} images"
        )
    return None if row["seed"] is not None else "asked.seed is no whole number from 0"


def _bytes(value: Any) -> bytes:
    """Equal for equal values; halves of characters, which msgspec refuses, included."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), sort_keys=True).encode()


def digest(value: Any) -> int:
    """64 bits of a hash of what ``value`` holds."""
    return _digest(_bytes(value))


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


# ---- rows, tables and frames ---------------------------------------------------------------------


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table."""
    names = {name for row in rows for name in row}
    schema = schema_of(name for name in map(METRIC.__add__, METRICS.names()) if name in names)
    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        values = [row.get(name) for row in rows]
        if kind == CATEGORY:
            arrays.append(_text(values).dictionary_encode())
        else:
            arrays.append(_text(values) if kind == TEXT else pa.array(values, kind))
    return pa.table(arrays, schema=schema)


def _text(values: Sequence[str | None]) -> pa.Array:
    """Texts as Arrow keeps them, halves of characters written out."""
    try:
        return pa.array(values, TEXT)
    except UnicodeEncodeError:
        kept = [v and v.encode("utf-8", "backslashreplace").decode("utf-8") for v in values]
        return pa.array(kept, TEXT)


def schema_of(metrics: Iterable[str]) -> pa.Schema:
    """The schema of a table that has, beside the fixed ones, columns of these metrics."""
    return pa.schema([*SCHEMA.items(), *((name, NUMBER) for name in metrics)])


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables as one, with a column for each metric that one of them has."""
    if not tables:
        return table_of([])
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries()


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The frame of a table: categories in the order of their names, whole numbers nullable.

    The table is used up, column by column, so that a million runs are never held twice.
    """
    kinds = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype("pyarrow")}
    frame: pd.DataFrame = table.to_pandas(
        types_mapper=kinds.get, split_blocks=True, self_destruct=True
    )
    pa.default_memory_pool().release_unused()
    for name, kind in frame.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype):
            frame[name] = frame[name].cat.reorder_categories(sorted(kind.categories))
    return frame


def frame_of(found: Iterable[tuple[Path, RunRecord]]) -> pd.DataFrame:
    """The frame of records that were read already; ``file`` says where each lies."""
    rows, pairs = Rows(), sorted(found, key=lambda pair: pair[0])
    frame = to_pandas(table_of([rows.row(record) for _, record in pairs]))
    files = pd.Series([str(path) for path, _ in pairs], dtype="string[pyarrow]")
    frame.insert(0, "file", files)
    return frame
