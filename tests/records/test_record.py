from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from vpeft_bench.errors import RecordError
from vpeft_bench.records import strict_json
from vpeft_bench.records.data_facts import DataFacts
from vpeft_bench.records.environment import environment, utc_now
from vpeft_bench.records.run_record import (
    Happened,
    Metrics,
    Parameters,
    Preprocessing,
    RunRecord,
    Split,
    Status,
    StoredBytes,
    Weights,
    WeightsLabel,
    Where,
    find,
    read,
    run_directory,
    write,
)


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        run_id="final/demo+digits/demo_vit/lora/0123456789/seed0",
        config_hash="0123456789",
        status=Status.OK,
        error=None,
        asked={"data": {"name": "demo/digits"}, "method": {"name": "lora", "rank": 8}, "seed": 0},
        happened=Happened(
            last_epoch=Metrics(
                Split.TEST, 10, 797, "top1", {"top1": 96.5, "mean_per_class_accuracy": None}
            ),
            curves={"train_loss": [2.0, None, 0.5]},
            parameters=Parameters(method=24_576, head=1_290, total=25_866, model=1_230_218),
            stored_bytes=StoredBytes(delta=98_304),
            peak_memory_note="the CPU does not count it",
        ),
        where=Where(
            **environment(),
            started=utc_now(),
            finished=utc_now(),
            weights=Weights("embedded", "sha256:00", WeightsLabel.DEMO),
            preprocessing=Preprocessing([0.5], [0.5], "bicubic", [32, 32]),
        ),
        labels=["demo backbone", "Zürich \udcff"],
    )


VALUES = ("happened", "last_epoch", "values")


def damage(path: Path, *keys: str, value: Any) -> None:
    raw = json.loads(path.read_text())
    node = raw
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(json.dumps(raw))


def test_a_record_comes_back_as_it_was(record: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write(record, path)
    assert read(path) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_the_same_record_gives_the_same_bytes(record: RunRecord, tmp_path: Path) -> None:
    backwards = dataclasses.replace(record, asked=dict(reversed(record.asked.items())))
    write(record, tmp_path / "a.json")
    write(backwards, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_not_json_is_refused_and_the_old_file_stays(
    record: RunRecord, tmp_path: Path, value: object
) -> None:
    path = tmp_path / "record.json"
    write(record, path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"record\.json: not written"):
        write(dataclasses.replace(record, asked={"train": {"lr": value}}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_refuses_what_read_would_refuse(record: RunRecord, tmp_path: Path) -> None:
    wrong = dataclasses.replace(record, run_id=7)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="run_id should be str, not int"):
        write(wrong, tmp_path / "record.json")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing_behind(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write(record, tmp_path / "record.json")
    assert not list(tmp_path.iterdir())


KILLED_WRITER = """
import dataclasses, sys
from pathlib import Path
from vpeft_bench.records.run_record import read, write
source, target = map(Path, sys.argv[1:])
record = read(source)
print("ready", flush=True)
for number in range(1_000_000):
    write(dataclasses.replace(record, run_id=str(number)), target)
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(
    record: RunRecord, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.json", tmp_path / "runs" / "record.json"
    curve: list[float | None] = [0.1] * 2_000
    happened = dataclasses.replace(record.happened, curves={"train_loss": curve})
    write(dataclasses.replace(record, happened=happened), source)
    written = 0
    for attempt in range(12):
        if attempt % 2:
            target.unlink(missing_ok=True)
        existed = target.exists()
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(source), str(target)], stdout=subprocess.PIPE
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        assert target.exists() or not existed
        if target.exists():
            assert read(target).happened == happened
            assert not find([target.parent]).problems
            written += 1
    assert written, "every writer was killed before it wrote: the test shows nothing"


def test_every_truncation_is_noticed(record: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write(record, path)
    whole = path.read_bytes()
    for size in range(0, len(whole.rstrip()), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"record\.json: not a whole JSON file"):
            read(path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["schema_version"], 8, "schema version 8; this code reads 1 to 7"),
        (["schema_version"], 0, "schema version 0"),
        (["schema_version"], None, "schema version None"),
        (["schema_version"], True, "schema version True"),
        (["status"], "fine", "Invalid enum value 'fine'"),
        (["run_id"], None, "run_id should be str, not null"),
        (["labels"], "demo", "labels should be array"),
        (["labels"], [1], r"labels\[0\] should be str"),
        (["asked"], [], "asked should be object"),
        (["happened", "last_epoch"], None, "last_epoch is null"),
        ([*VALUES, "top1"], "96", "happened.last_epoch.values.top1 should be float"),
        ([*VALUES, "top1"], True, "happened.last_epoch.values.top1 should be float"),
        ([*VALUES, "top1"], 101, "top1 is 101.0, and must be at least 0 and at most 100"),
        ([*VALUES, "top1"], float("nan"), "NaN is not allowed"),
        ([*VALUES, "top5"], 99.0, "top5 is no known metric"),
        (["happened", "last_epoch", "headline"], "miou", "headline miou is not among the values"),
        (["happened", "last_epoch", "images"], 1.5, "images should be int"),
        (["happened", "last_epoch", "images"], True, "images should be int"),
        (["happened", "last_epoch", "images"], 0, "images is 0"),
        (["happened", "last_epoch", "top5"], 99.0, "missing or unknown: top5"),
        (
            ["happened", "diverged"],
            {"quantity": "loss", "epoch": 1, "step": 1},
            "status is ok, yet happened.diverged",
        ),
        (["happened", "parameters", "total"], 1, "total 1 is not method"),
        (["happened", "peak_memory_bytes"], 0.5, "peak_memory_bytes should be int"),
        (["happened", "stored_bytes"], None, "stored_bytes should be object, not null"),
        (["where", "finished"], "2026-01-01T00:00:00", "not in UTC"),
        (["where", "finished"], "2026-01-01T00:00:00+02:00", "not in UTC"),
        (["where", "finished"], "yesterday", "Invalid isoformat"),
        (
            ["where", "weights", "label"],
            "guessed",
            "Invalid enum value 'guessed' .at where.weights.label.",
        ),
        (["error"], "but", "the status is ok, yet there is an error"),
        (["happened", "parameters", "method"], -1, "method is -1, which must not be negative"),
        (["happened", "parameters", "method"], 10**400, "is beyond any count"),
        (["happened", "parameters", "method"], 2**63, "is beyond any count"),
        (["happened", "seconds", "train"], -0.5, "train is -0.5, which must not be negative"),
        (["happened", "resumed"], -1, "resumed is -1, which must not be negative"),
        (["happened", "curves"], {"a": [1.0], "b": []}, "curves have different lengths"),
        (["asked", "seed"], 10**30, "is beyond any count"),
        (["asked", "seed"], -(2**63), "is beyond any count"),
        (["where", "versions"], {"torch": "2", "timm": 1}, "where.versions.timm should be str"),
        (
            ["happened", "curves"],
            {"a": [1.0], "b": ["x"]},
            r"happened.curves.b\[0\] should be float",
        ),
    ],
)
def test_reading_is_strict(
    record: RunRecord, tmp_path: Path, keys: list[str], value: Any, message: str
) -> None:
    path = tmp_path / "record.json"
    write(record, path)
    damage(path, *keys, value=value)
    with pytest.raises(RecordError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_are_read(record: RunRecord, tmp_path: Path, version: int) -> None:
    path = tmp_path / "record.json"
    write(record, path)
    raw = json.loads(path.read_text())
    raw["schema_version"] = version
    del raw["uncounted"], raw["method_version"]
    last = raw["happened"]["last_epoch"]
    del last["headline"]
    last |= last.pop("values")  # the accuracies were fields of their own
    if version == 1:
        del raw["happened"]["seconds"]["selection"]
    path.write_text(json.dumps(raw))
    assert read(path) == record


@pytest.mark.parametrize("sides", [(512, 2048), (64, 64)])
def test_limits_of_any_size_are_no_size(
    record: RunRecord, tmp_path: Path, sides: tuple[int, int]
) -> None:
    """Version 6 wrote them in its place; equal ones are a square, as far as anybody can tell."""
    path = tmp_path / "record.json"
    write(record, path)
    raw = json.loads(path.read_text())
    raw["schema_version"] = 6
    raw["asked"]["input"] = {"test_shorter_side": sides[0], "longer_side": sides[1]}
    old = raw["where"]["preprocessing"]
    del old["shorter_side"], old["longer_side"]
    old["image_size"] = list(sides)
    path.write_text(json.dumps(raw))
    new = read(path).where.preprocessing
    assert new is not None
    if sides[0] == sides[1]:
        assert (new.image_size, new.shorter_side) == ([64, 64], None)
    else:
        assert (new.image_size, new.shorter_side, new.longer_side) == (None, 512, 2048)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("happened", [None, [], 7, {"last_epoch": 3, "seconds": []}])
def test_damage_of_older_versions_is_reported(
    record: RunRecord, tmp_path: Path, version: int, happened: object
) -> None:
    path = tmp_path / "record.json"
    write(record, path)
    damage(path, "happened", value=happened)
    damage(path, "schema_version", value=version)
    assert len(find([tmp_path]).problems) == 1


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"7", b"{}", b"\xff\xfe", b"{}{}"])
def test_other_files_are_no_records(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text)
    with pytest.raises(RecordError):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 64 levels"),
        ('{"schema_version": 5, "asked": ' + "[" * 70 + "]" * 70 + "}", "nested more than 64"),
        ('{"schema_version": 1e999}', "1e999 is not a finite number"),
        ('{"status": "ok", "status": "failed"}', "'status' is given twice"),
        ('{"asked": {"x": {"a" : 1, "b": ":", "a"\n:2}}}', "'a' is given twice"),
        ('{"asked": {"\\\\": 1, "\\\\": ":"}}', "is given twice"),
        ('{"asked": {"a": "\\u003a", "a": ""}}', "'a' is given twice"),
        ('{"asked": {"b": "\\u003A", "a": 1, "a": 1}}', "'a' is given twice"),
        (" " * (strict_json.MOST_BYTES + 1), "larger than 32 MiB"),
    ],
)
def test_what_goes_beyond_all_bounds_costs_only_itself(
    record: RunRecord, tmp_path: Path, text: str, message: str
) -> None:
    write(record, tmp_path / "a" / "record.json")
    odd = tmp_path / "b" / "record.json"
    odd.parent.mkdir()
    odd.write_text(text)
    found = find([tmp_path])
    assert [one for _, one in found.records] == [record]
    assert [problem.where for problem in found.problems] == [str(odd)]
    assert message in found.problems[0].what


def test_a_pipe_is_no_record_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    (problem,) = find([tmp_path]).problems
    assert problem.what == "not a file"


@pytest.mark.parametrize("error", [RecursionError, OverflowError, MemoryError, KeyError])
def test_whatever_a_record_raises_costs_only_itself(tmp_path: Path, error: type[Exception]) -> None:
    def read_one(path: Path) -> str:
        if path.parent.name == "odd":
            raise error("damaged")
        return path.parent.name

    for name in ("good", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text("{}")
    found, problems = strict_json.find([tmp_path], "record.json", read_one)
    assert [name for _, name in found] == ["good"]
    assert "damaged" in problems[0].what


def test_a_missing_field_is_named(record: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write(record, path)
    raw = json.loads(path.read_text())
    del raw["where"]["device"]
    path.write_text(json.dumps(raw))
    with pytest.raises(RecordError, match="where: missing or unknown: device"):
        read(path)


def test_a_run_that_did_not_end_well_says_why(record: RunRecord) -> None:
    failed = dataclasses.replace(record, status=Status.OOM, error="no memory", happened=Happened())
    assert failed.happened.last_epoch is None
    with pytest.raises(ValueError, match="no error says why"):
        dataclasses.replace(record, status=Status.INTERRUPTED)


def test_finding_goes_on_past_damage(record: RunRecord, tmp_path: Path) -> None:
    for name in ("b", "a", "a/deeper"):
        write(record, tmp_path / name / "record.json")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "record.json").write_text("{")
    (tmp_path / "d" / "record.json").mkdir(parents=True)
    (tmp_path / "a" / ".record.json.0.tmp").write_text("{")
    found = find([tmp_path / "b", tmp_path, tmp_path / "nowhere"])
    assert [path.parent.relative_to(tmp_path).as_posix() for path, _ in found.records] == [
        "a/deeper",
        "a",
        "b",
    ]
    assert [problem.where for problem in found.problems] == [
        str(tmp_path / "nowhere"),
        str(tmp_path / "c" / "record.json"),
        str(tmp_path / "d" / "record.json"),
    ]


def test_run_directories_are_readable() -> None:
    path = run_directory(Path("r"), "final", "demo/digits", "demo_vit", "hf/lora", "ab12", 3)
    assert path == Path("r/final/demo+digits/demo_vit/hf+lora/ab12/seed3")


def test_run_directories_differ_and_stay_below_the_results(tmp_path: Path) -> None:
    names = ["a", "a/b", "a+b", "a%2Fb", "a%2Bb", "a b", ".", "..", "../a", "/a", "é", "A.b", ".a"]
    paths = {
        run_directory(tmp_path, "final", data, backbone, method, "h", 0)
        for data, backbone, method in product(names, repeat=3)
    }
    assert len(paths) == len(names) ** 3
    for path in paths:
        assert len(path.relative_to(tmp_path).parts) == 6
        assert path.resolve() == path
    with pytest.raises(ValueError, match="empty"):
        run_directory(tmp_path, "final", "", "vit", "lora", "h", 0)


def test_the_page_on_records_names_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "records.md").read_text()
    inner = {"happened": Happened, "where": Where, "where.data": DataFacts}
    names = {field.name for field in dataclasses.fields(RunRecord)}
    for part, kind in inner.items():
        names |= {f"{part}.{field.name}" for field in dataclasses.fields(kind)}
    names -= set(inner)
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = " ".join(rows)
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
