"""Records are read once, and never from a cache that is not what it says."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from vpeft_bench.leaderboard import reading
from vpeft_bench.leaderboard.admitted import admitted
from vpeft_bench.leaderboard.cells import cells_of
from vpeft_bench.leaderboard.reading import find_runs, write_runs
from vpeft_bench.leaderboard.runs import SCHEMA, frame_of
from vpeft_bench.records.run_record import RunRecord, Status, find, write

Run = Callable[..., RunRecord]
Save = Callable[..., Path]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The records that were read, and not taken from the cache."""
    paths: list[Path] = []
    real = reading.read

    def counted(path: str) -> RunRecord:
        paths.append(Path(path))
        return real(path)

    monkeypatch.setattr(reading, "read", counted)
    return paths


def older(directory: Path, seconds: int = 60) -> None:
    """As if the records had been written a while ago."""
    then = time.time() - seconds
    for path in directory.rglob("record.json"):
        os.utime(path, (then, then))


def three(run: Run, save: Save) -> Path:
    directory = save(
        run(50.0), run(60.0, seed=1), run(status=Status.FAILED, seed=2, error="no\n memory")
    )
    older(directory)
    return directory


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    pd.testing.assert_frame_equal(one, other)
    return True


def test_a_frame_has_the_types_it_says(run: Run) -> None:
    frame = frame_of([(Path("a/record.json"), run(50.0, peak_memory_bytes=3))])
    kinds = {
        "string": {"run_id", "error"},
        "Int64": {"seed", "epoch", "parameters_method", "peak_memory_bytes"},
        "float64": {"value", "train_seconds", "metric_top1"},
        "category": {"method", "options", "status", "data", "settings", "labels"},
    }
    assert list(frame.columns[1 : len(SCHEMA) + 1]) == list(SCHEMA)
    for kind, names in kinds.items():
        assert {str(frame[name].dtype) for name in names} == {kind}
    assert frame["train_loss"].isna().all()


def test_what_is_not_measured_is_missing_and_never_zero(run: Run) -> None:
    frame = frame_of([(Path("a/record.json"), run(status=Status.OOM))])
    names = ["value", "parameters_method", "stored_delta_bytes", "train_seconds", "split"]
    assert frame[names].isna().all(axis=None)


def test_the_second_time_no_record_is_read(run: Run, save: Save, read: list[Path]) -> None:
    directory = three(run, save)
    first = find_runs([directory])
    assert len(read) == 3
    assert same(first.runs, find_runs([directory]).runs)
    assert len(read) == 3
    assert same(first.runs, find_runs([directory], use_cache=False).runs)
    assert len(read) == 6
    # As the reader of single records has it.
    assert same(first.runs, frame_of(find([directory]).records))


def test_a_record_that_changes_comes_or_goes_is_seen(
    run: Run, save: Save, read: list[Path]
) -> None:
    directory = three(run, save)
    find_runs([directory])
    read.clear()
    write(run(70.0), directory / "000" / "record.json")
    assert [*find_runs([directory]).runs["value"]][:2] == [70.0, 60.0]
    assert [path.parent.name for path in read] == ["000"]
    save(run(80.0, seed=3))
    assert find_runs([directory]).runs["seed"].tolist() == [0, 1, 2, 3]
    (directory / "001" / "record.json").unlink()
    assert find_runs([directory]).runs["seed"].tolist() == [0, 2, 3]


def test_a_record_written_a_moment_ago_is_read_again(
    run: Run, save: Save, read: list[Path]
) -> None:
    """It may be written again within the same tick of the clock, with the same size."""
    directory = save(run(50.0))
    find_runs([directory])
    find_runs([directory])
    assert len(read) == 2


def test_damage_is_told_every_time_and_costs_only_itself(run: Run, save: Save) -> None:
    directory = three(run, save)
    (directory / "001" / "record.json").write_text("{")
    older(directory)
    for _ in range(2):
        found = find_runs([directory])
        assert found.runs["seed"].tolist() == [0, 2]
        (problem,) = found.problems
        assert problem.where == str(directory / "001" / "record.json")
        assert "not a whole JSON file" in problem.what


@pytest.mark.parametrize(
    "damage", ["cut", "text", "empty", "flipped", "foreign", "older", "folder"]
)
def test_a_cache_that_is_damaged_or_foreign_is_made_again(
    run: Run, save: Save, cache: Path, read: list[Path], damage: str
) -> None:
    directory = three(run, save)
    first = find_runs([directory]).runs
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    if damage == "cut":
        kept.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = whole.index(b"final/demo") if b"final/demo" in whole else len(whole) // 3
        kept.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "folder":
        kept.unlink()
        kept.mkdir()
    elif damage in ("foreign", "older"):
        table = pq.read_table(kept)
        if damage == "foreign":  # of this version, by what it says
            table = table.drop_columns(["claim"])
        else:
            table = table.replace_schema_metadata({b"vpeft_bench.runs": b"0.0.1"})
        pq.write_table(table, kept)
    else:
        kept.write_bytes(b"" if damage == "empty" else b"PAR1 no PAR1")
    read.clear()
    assert same(first, find_runs([directory]).runs)
    assert len(read) == 3
    if damage != "folder":
        assert same(first, find_runs([directory]).runs)
        assert len(read) == 3


def test_other_code_does_not_believe_the_cache(
    run: Run, save: Save, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = three(run, save)
    find_runs([directory])
    monkeypatch.setattr(reading, "_code", lambda: b"of tomorrow")
    find_runs([directory])
    assert len(read) == 6


def test_where_no_cache_can_be_written_everything_works(
    run: Run, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = three(run, save)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VPEFT_BENCH_CACHE", str(tmp_path / "file" / "below"))
    for _ in range(2):
        assert find_runs([directory]).runs["seed"].tolist() == [0, 1, 2]


def test_two_at_once_each_see_all(run: Run, save: Save, cache: Path) -> None:
    directory = save(*(run(50.0, seed=seed) for seed in range(30)))
    older(directory)
    code = (
        "import sys; from pathlib import Path\n"
        "from vpeft_bench.leaderboard.reading import find_runs\n"
        "for _ in range(8): assert len(find_runs([Path(sys.argv[1])]).runs) == 30"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(directory)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".parquet"]


def test_many_records_are_read_by_several_processes(
    run: Run, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save(*(run(50.0, seed=seed) for seed in range(12)))
    alone = find_runs([directory], use_cache=False).runs
    monkeypatch.setattr(reading, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(reading, "_BATCH", 5)
    assert same(alone, find_runs([directory], use_cache=False).runs)


def test_a_consolidated_file_stands_for_its_records(run: Run, save: Save, tmp_path: Path) -> None:
    directory = three(run, save)
    runs = find_runs([directory]).runs
    write_runs(runs, tmp_path / "runs.parquet")
    again = find_runs([tmp_path / "runs.parquet"]).runs
    assert same(cells_of(admitted(again).rows), cells_of(admitted(runs).rows))
    both = admitted(find_runs([tmp_path / "runs.parquet", directory]).runs)
    assert (len(both.rows), both.copies, both.left_out) == (3, 3, [])


def test_a_file_that_is_no_frame_of_runs_is_told(tmp_path: Path) -> None:
    for name, content in (("a.parquet", b"PAR1"), ("b.parquet", None)):
        if content is None:
            pd.DataFrame({"method": ["lora"]}).to_parquet(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        (problem,) = find_runs([tmp_path / name]).problems
        assert problem.where == str(tmp_path / name)
        assert "python -m vpeft_bench leaderboard" in problem.fix


def test_halves_of_characters_and_odd_names_come_through(run: Run) -> None:
    odd = dataclasses.replace(run(50.0, labels=("Zürich \udcff",)), run_id="\udcff/seed0")
    frame = frame_of([(Path("a/record.json"), odd)])
    assert frame["run_id"].tolist() == ["\\udcff/seed0"]
    assert cells_of(admitted(frame).rows)["label_list"].tolist() == [("Zürich \udcff",)]
