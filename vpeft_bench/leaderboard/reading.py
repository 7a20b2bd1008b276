"""Reading records into the frame of runs, each file once and not again until it changes.

What was read is kept as Parquet in the user's own cache folder (``$VPEFT_BENCH_CACHE``, else
``vpeft_bench`` below ``$XDG_CACHE_HOME`` or ``~/.cache``), one file per folder of records, by path,
size and time of each record. It is worth nothing: it is left aside where it is damaged, of another
version, or of other code, and nothing is said where it cannot be written.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vpeft_bench.errors import Problem
from vpeft_bench.files import cache_folder, replacing
from vpeft_bench.leaderboard.cells import in_order
from vpeft_bench.leaderboard.runs import (
    METRIC,
    Rows,
    joined,
    schema_of,
    table_of,
    to_pandas,
)
from vpeft_bench.metric_names import METRICS
from vpeft_bench.records.run_record import RECORD_NAME, read
from vpeft_bench.records.strict_json import Place, below, read_or_say

_BATCH = 1_000
"""Records that become one table at a time."""
_WORTH_PROCESSES = 8_000
"""Records to be read from which on several processes are faster than one."""
_YOUNG = 2 * 10**9
"""Nanoseconds: a file that was just written may be written again within the same tick."""
_KEY = [("file", pa.string()), ("size", pa.int64()), ("changed", pa.int64())]
_VERSION = b"vpeft_bench.runs"


class FoundRuns(NamedTuple):
    """What lay below some directories.

    Attributes:
        runs: one row per readable record, sorted by path; ``file`` is where it lies.
        problems: every file or directory that could not be read.
    """

    runs: pd.DataFrame
    problems: list[Problem]


def find_runs(directories: Iterable[Path], use_cache: bool = True) -> FoundRuns:
    """The frame of every record below ``directories``; damage is returned, not raised.

    A directory may also be a ``runs.parquet``, as the leaderboard writes it.
    """
    table, problems = _found(directories, use_cache)
    return FoundRuns(to_pandas(table), problems)


def _found(directories: Iterable[Path], use_cache: bool) -> tuple[pa.Table, list[Problem]]:
    """As :func:`find_runs`, in a table that nobody else holds a part of."""
    tables: list[pa.Table] = []
    folders: list[Path] = []
    problems: list[Problem] = []
    for path in sorted(set(directories)):
        if path.is_file() and path.suffix == ".parquet":
            table = _consolidated(path)
            if isinstance(table, Problem):
                problems.append(table)
            else:
                tables.append(table)
        else:
            folders.append(path)
    places, missing = below(folders, RECORD_NAME)
    problems += missing
    if places:
        found, wrong = _read(places, _cache_file(folders) if use_cache else None)
        tables.append(found)
        problems += wrong
    return _in_order(tables), problems


def write_runs(runs: pd.DataFrame, path: Path) -> None:
    """Write a frame of runs as Parquet, to be read again in the place of its records."""
    schema = schema_of([str(name) for name in runs if str(name).startswith(METRIC)])
    _write(path, _format(), schema, (_table_of(part, schema) for part in in_order(runs)))


def _consolidated(path: Path) -> pa.Table | Problem:
    """A frame of runs that a leaderboard wrote."""
    fix = "write it again: python -m vpeft_bench leaderboard --records DIR --out DIR"
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if (file.schema_arrow.metadata or {}).get(_VERSION) != _format():
            return Problem(str(path), "is no runs.parquet of this version of the leaderboard", fix)
        table = file.read()
        return table.add_column(0, "file", pa.repeat(str(path), len(table)))
    except (pa.ArrowException, OSError) as error:
        return Problem(str(path), f"cannot be read: {' '.join(str(error).split())}", fix)


def _in_order(tables: Sequence[pa.Table]) -> pa.Table:
    """Several tables as one, without what the cache adds."""
    if not tables:
        empty = table_of([])
        return empty.add_column(0, "file", pa.array([], pa.string()))
    kept = [
        table.drop_columns([n for n in ("size", "changed") if n in table.column_names])
        for table in tables
    ]
    return joined(kept)


# ---- records -------------------------------------------------------------------------------------


def _read(places: Sequence[Place], cache: Path | None) -> tuple[pa.Table, list[Problem]]:
    """The records at ``places`` as a table, from the cache where they are as they were."""
    now = time.time_ns()
    keys = pa.table(list(zip(*places, strict=True)), schema=pa.schema(_KEY))
    kept = _cached(cache) if cache else None
    known = np.full(len(places), -1)
    if kept is not None and len(kept):
        known = _rows_of(keys, kept)
    new = np.flatnonzero(known < 0)
    tables, problems = [], []
    for table, wrong in _tables([places[int(i)] for i in new]):
        tables.append(table)
        problems += wrong
    if kept is not None and len(new) < len(places):
        tables.append(kept.take(pa.array(known[known >= 0])))
    table = joined(tables) if len(tables) != 1 else tables[0]
    if len(tables) > 1:
        # Sorted as the places are; what could not be read is not among them.
        order = pc.index_in(keys["file"], table["file"]).drop_null()
        table = table.take(order)
    if cache and (len(new) or (kept is not None and len(kept) != len(table))):
        old = table.filter(pc.less(table["changed"], now - _YOUNG))
        if len(old):
            _write_cache(old, cache)
    return table, problems


def _rows_of(keys: pa.Table, kept: pa.Table) -> np.ndarray:
    """For each key the row of ``kept`` that has it; -1 where none has."""
    at = pc.index_in(keys["file"], kept["file"])
    found = at.fill_null(0)
    same = at.is_valid()
    for name in ("size", "changed"):
        same = pc.and_(same, pc.equal(keys[name], kept[name].take(found)))
    return np.where(same.to_numpy(), found.to_numpy(), -1)


def _tables(places: Sequence[Place]) -> Iterator[tuple[pa.Table, list[Problem]]]:
    """Records as tables, some at a time, in their order."""
    batches = [places[start : start + _BATCH] for start in range(0, len(places), _BATCH)]
    workers = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8
    )
    if len(places) < _WORTH_PROCESSES or workers < 2:
        yield from map(_table, batches)
        return
    # A process that has threads, as this one may, is not forked.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_table, batches)


def _table(places: Sequence[Place]) -> tuple[pa.Table, list[Problem]]:
    """Some records as a table with their keys, and those that could not be read."""
    maker = Rows()
    rows, keys, problems = [], [], []
    with _no_collection():
        for place in places:
            read_ = read_or_say(place.path, lambda path: maker.row(read(path)))
            if isinstance(read_, Problem):
                problems.append(read_)
            else:
                rows.append(read_)
                keys.append(place)
        table = table_of(rows)
    for i, (name, kind) in enumerate(_KEY):
        column = pa.array([key[i] for key in keys], kind)
        table = table.add_column(i, name, column)
    return table, problems


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for cycles, which records have none of: it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# ---- the cache -----------------------------------------------------------------------------------


def _cache_file(folders: Iterable[Path]) -> Path | None:
    """Where what lies below ``folders`` is kept."""
    names = json.dumps(sorted({str(folder.resolve()) for folder in folders}))
    digest = hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return cache_folder() / "leaderboard" / f"{digest}.parquet"


def _cached(path: Path) -> pa.Table | None:
    """What is kept, if it is whole and of this code."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if (file.schema_arrow.metadata or {}).get(_VERSION) != _code():
            return None
        table = file.read()
    except (pa.ArrowException, OSError, ValueError):
        return None
    metrics = [name for name in table.column_names if name.startswith(METRIC)]
    wanted = pa.schema([*_KEY, *schema_of(metrics)])
    return table if table.schema.equals(wanted) else None


def _write_cache(table: pa.Table, path: Path) -> None:
    try:
        _write(path, _code(), table.schema, [table], durable=False)
    except OSError:
        return  # a full disk, a home that cannot be written: the next call reads the records again


def _write(
    path: Path, version: bytes, schema: pa.Schema, tables: Iterable[pa.Table], durable: bool = True
) -> None:
    marked = schema.with_metadata({_VERSION: version})
    options = {"compression": "zstd", "write_page_checksum": True}
    with (
        replacing(path, durable=durable) as temporary,
        pq.ParquetWriter(temporary, marked, **options) as file,
    ):
        for table in tables:
            file.write_table(table.replace_schema_metadata(marked.metadata))


def _table_of(runs: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    kept = runs[schema.names]
    categories = kept.select_dtypes("category").columns
    kept = kept.assign(**{c: kept[c].cat.remove_unused_categories() for c in categories})
    return pa.Table.from_pandas(kept, schema=schema, preserve_index=False)


def _format() -> bytes:
    """Of a consolidated file: its columns."""
    return hashlib.sha256(str(schema_of([])).encode()).hexdigest()[:16].encode()


@functools.cache
def _code() -> bytes:
    """Of a cache: everything that decides what a row is, the metrics of plug-ins included."""
    content = hashlib.sha256(f"{version('vpeft-bench')} {METRICS.names()} {_format()!r}".encode())
    root = Path(__file__).parents[1]
    for room in ("config", "leaderboard", "metrics", "records", "tasks"):
        for source in sorted((root / room).rglob("*.py")):
            content.update(source.read_bytes())
    for name in ("always_counted.json", "always_counted.py", "fields.py", "formats.py"):
        content.update((root / name).read_bytes())
    return content.hexdigest().encode()
