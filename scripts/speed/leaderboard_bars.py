"""How long a leaderboard takes for many records, and the memory it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from speed.measure import Row, Settings
from vpeft_bench.config.benchmarks import known
from vpeft_bench.config.identity import asked_hash
from vpeft_bench.leaderboard.reading import find_runs, write_runs

RECORDS, CONSOLIDATED = 100_000, 1_000_000
METHODS, SEEDS = 40, 5
READ = """
from pathlib import Path
from vpeft_bench.leaderboard.admitted import admitted
from vpeft_bench.leaderboard.cells import cells_of
from vpeft_bench.leaderboard.reading import find_runs
cells_of(admitted(find_runs([Path(sys.argv[1])]).runs).rows)
"""
COMMAND = """
import contextlib, os
from vpeft_bench.cli.leaderboard import main
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    main(["--records", *sys.argv[1:]])
"""
PEAK = """
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""
"""Kibibytes of the process alone: what ``wait4`` tells includes the memory of who started it."""


class Used(NamedTuple):
    """What a process and those that it started used."""

    wall: float
    cpu: float
    mib: float


def leaderboard(settings: Settings) -> list[Row]:
    """100,000 records to tables, never read before and again, and a million in one file."""
    count = 500 if settings.quick else RECORDS
    many = 5_000 if settings.quick else CONSOLIDATED
    with TemporaryDirectory() as place:
        folder = Path(place)
        for number, text in enumerate(records(a_real_one(folder), count)):
            path = folder / "many" / f"{number // 1000:04}" / f"{number:07}" / "record.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        then = path.stat().st_mtime - 60
        for record in (folder / "many").rglob("record.json"):
            os.utime(record, (then, then))
        consolidated = folder / "runs.parquet"
        write_runs(tiled(find_runs([folder / "many"], use_cache=False).runs, many), consolidated)

        def read(where: Path, fresh: bool) -> Used:
            return used(READ, [str(where)], folder, fresh)

        def command(where: Path, fresh: bool) -> Used:
            return used(COMMAND, [str(where), "--out", str(folder / "out")], folder, fresh)

        repeats = settings.slow_repeats
        small, large = f"{count:,} records", f"{many:,} consolidated"
        rows: list[Row] = []
        for name, measure, where, fresh, bar in (
            (f"{small}, cold", read, folder / "many", True, 15.0),
            (f"{small}, warm", read, folder / "many", False, 3.0),
            (large, read, consolidated, False, 5.0),
            (f"{small}, cold, whole command", command, folder / "many", True, None),
            (f"{small}, warm, whole command", command, folder / "many", False, None),
            (f"{large}, whole command", command, consolidated, False, None),
        ):
            if not fresh:
                measure(where, False)  # once, to fill the caches
            rows += described(name, [measure(where, fresh) for _ in range(repeats)], bar, settings)
        return rows


ITEMS = (leaderboard,)


def described(name: str, found: list[Used], bar: float | None, settings: Settings) -> list[Row]:
    """Time and memory of one thing, several times."""
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end"
    seconds, mib = [one.wall for one in found], [one.mib for one in found]
    sides = {"CPU of all processes [s]": [one.cpu for one in found]}
    at_most = settings.bar(bar, bar) if bar is not None else None
    what = "command" if "command" in name else "files to cells"
    size = settings.bar(1024, 1024)
    return [
        Row(name, f"seconds, {what}", seconds, "s", at_most=at_most, sides=sides, note=load),
        Row(name, "peak memory of the process, without its workers", mib, "MiB", at_most=size),
    ]


def used(code: str, arguments: Sequence[str], folder: Path, fresh: bool) -> Used:
    """Run Python once; ``fresh``: with an empty cache."""
    cache = folder / "cache"
    if fresh:
        for kept in cache.rglob("*.parquet"):
            kept.unlink()
    environment = {**os.environ, "VPEFT_BENCH_CACHE": str(cache)}
    whole = f"import sys\nfrom pathlib import Path\n{code}{PEAK}"
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", whole, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Used(wall, cpu, int(done.stdout.split()[-1]) / 1024)


def a_real_one(folder: Path) -> dict[str, Any]:
    """The record of a run that is made for it."""
    run = ["method=linear", "train.epochs=2", f"results_dir={folder / 'runs'}"]
    command = [sys.executable, "-m", "vpeft_bench", *run]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (path,) = (folder / "runs").rglob("record.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def records(real: dict[str, Any], count: int) -> Iterator[str]:
    """Sound records: method by method, data set by data set, seed by seed, variant by variant."""
    random = np.random.default_rng(0)
    asked, values = real["asked"], real["happened"]["last_epoch"]["values"]
    asked["data"]["benchmark"] = "vtab1k"
    made = 0
    for number in range(count):
        for method in range(METHODS):
            asked["method"]["name"] = f"method{method}"
            asked["variant"]["name"] = real["variant"] = f"method{method} tuned {number}"
            asked["train"]["lr"] = 10.0 ** -(1 + number % 6) * (1 + number // 6)
            for data in known()["vtab1k"].members:
                asked["data"]["name"] = data
                where = real["where"]
                real["config_hash"] = asked_hash(
                    asked,
                    where["data_fingerprint"],
                    where["weights"]["identity"],
                    real["uncounted"],
                    real["method_version"],
                )
                for seed in range(SEEDS):
                    asked["seed"] = seed
                    real["run_id"] = f"final/{data}/method{method}/{real['config_hash']}/{seed}"
                    values["top1"] = random.uniform(40, 99)
                    yield json.dumps(real, indent=1, sort_keys=True) + "\n"
                    made += 1
                    if made == count:
                        return


def tiled(runs: pd.DataFrame, count: int) -> pd.DataFrame:
    """More runs of the same kind: the same ones with other seeds, and half of them renamed."""
    times = -(-count // len(runs))
    parts = []
    for number in range(times):
        part = runs.assign(
            content=runs["content"] ^ np.uint64(number * 7919),
            seed=runs["seed"] + SEEDS * (number // 2),
        )
        for name in ("config_hash", "true_hash", "variant", "name"):
            names = runs[name].cat.categories
            renamed = [f"{one}-{number % 2}" for one in names]
            part[name] = part[name].cat.rename_categories(renamed)
        parts.append(part)
    categories = list(runs.select_dtypes("category").columns)
    whole = pd.concat([part.drop(columns=categories) for part in parts], ignore_index=True)
    together = {
        name: union_categoricals([part[name] for part in parts], sort_categories=True)
        for name in categories
    }
    return whole.assign(**together).head(count)
