"""Every row of the shared ``cases.csv``: odd inputs as real users have them, and what is right.

The runner beside the cases checks exit status, messages, labels and twins; what a row gives as a
``value`` is checked here.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import SHARED, Cli, shared_path
from vpeft_bench.config.choices import config_dir
from vpeft_bench.data.composed import compose_data_configs
from vpeft_bench.data.dataset import open_dataset
from vpeft_bench.data.splits import Dataset

pytestmark = pytest.mark.slow

FILE = SHARED / "cases" / "cases.csv"
ROWS: list[dict[str, str]] = []
if FILE.is_file():
    with FILE.open(encoding="utf-8", newline="") as file:
        ROWS = list(csv.DictReader(file))


def test_the_cases_are_there() -> None:
    """Where the shared material is, none of its rows is skipped."""
    assert shared_path("cases/cases.csv").is_file()
    assert len(ROWS) >= 60


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_case(row: dict[str, str], cli: Cli, tmp_path: Path) -> None:
    make = shared_path("cases/make_cases.py")
    subprocess.run([sys.executable, make, tmp_path, row["name"]], check=True, capture_output=True)
    root = tmp_path / row["name"]
    assert runner(cli).faults(sys.executable, row, root) == []
    if check := VALUES.get(row["name"]):
        check(root)


def runner(cli: Cli) -> ModuleType:
    """The shared ``run_cases.py``, its commands run by ``cli``."""
    spec = importlib.util.spec_from_file_location("run_cases", shared_path("tools/run_cases.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    start = module.run

    def run(python: str, command: str, root: Path) -> tuple[int, str]:
        if command.startswith("script:"):
            status, printed = start(python, command, root)
            return int(status), str(printed)
        done = cli(*shlex.split(command.replace("{root}", str(root))), cwd=root, timeout=600)
        return done.returncode, done.stdout + done.stderr

    module.run = run
    # Of a twin the shared runner compares the seconds of its epochs as well, which never agree.
    module.outcome = lambda record: json.dumps(
        [
            record.get("happened", {}).get("last_epoch"),
            {
                name: values
                for name, values in record.get("happened", {}).get("curves", {}).items()
                if name != "train_seconds"
            },
        ],
        sort_keys=True,
    )
    return module


# ---- values -------------------------------------------------------------------------------------


def opened(root: Path, name: str, **changes: Any) -> Dataset:
    """The data set of a case."""
    (config,) = compose_data_configs(config_dir(), [name])
    config.root = str(root)
    for key, value in changes.items():
        setattr(config, key, value)
    return open_dataset(config)


def voc(root: Path) -> Dataset:
    (config,) = compose_data_configs(config_dir(), ["voc_xml"])
    lists = {key: value for key, value in config.lists.items() if key != "val"}
    return opened(root, "voc_xml", lists=lists, hold_out=0.2)


def upright(dataset: Dataset) -> None:
    """Every picture is 64 wide and 48 high, and white in its top left quarter alone."""
    for split in dataset.splits.values():
        for index in range(len(split)):
            pixels = np.asarray(split.image(index))
            assert pixels.shape == (48, 64, 3)
            assert pixels[:20, :28].min() > 200
            assert pixels[28:, 36:].min(axis=-1).max() < 200


def records_of(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(root.rglob("record.json"))]


def no_epoch_after_the_first_that_is_not_finite(root: Path) -> None:
    (record,) = records_of(root)
    assert record["status"] == "failed"
    assert record["happened"]["diverged"]["quantity"]
    assert record["happened"]["last_epoch"] is None
    losses = record["happened"]["curves"].get("train_loss", [])
    assert None not in losses[:-1]


def one_failed_and_one_ok(root: Path) -> None:
    assert sorted(record["status"] for record in records_of(root)) == ["failed", "ok"]


def one_row_of_97(root: Path) -> None:
    (line,) = csv.DictReader((root / "tables" / "datasets_final.csv").open(encoding="utf-8"))
    assert (line["n"], float(line["mean"])) == ("1", 97.0)


def harmless_names(root: Path) -> None:
    for path in (root / "tables").iterdir():
        if path.suffix == ".parquet":  # values as they are, for programs
            continue
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text
        if path.suffix == ".csv":
            fields = [field for row in csv.reader(text.splitlines()) for field in row]
            assert not [f for f in fields if f[:1] in ("=", "+", "@") or f[:2] == "-"]
        elif path.suffix == ".html":
            assert text.count("<script") == 1, "the page's own"
        elif path.suffix in (".md", ".tex"):
            assert "<script>" not in text
            assert not [line for line in text.splitlines()[1:] if line.startswith("#")]


def no_sweep_folder(root: Path) -> None:
    assert not (root / "results" / "sweeps").exists()


def class_names(root: Path) -> None:
    assert opened(root, "imagelist").class_names == ("ant", "bee", "cat", "dog")


def nothing_ignored(root: Path) -> None:
    splits = voc(root).splits
    flags = [
        flag
        for name in ("trainval", "test")
        for index in range(len(splits[name]))
        for flag in splits[name].objects(index).ignored.tolist()  # type: ignore[attr-defined]
    ]
    assert flags == [False] * 18


VALUES: dict[str, Callable[[Path], None]] = {
    "picture-exif-6": lambda root: upright(opened(root, "imagelist")),
    "voc-exif-6": lambda root: upright(voc(root)),
    "list-classes-bom": class_names,
    "voc-difficult-false": nothing_ignored,
    "diverge-classification": no_epoch_after_the_first_that_is_not_finite,
    "diverge-in-sweep": one_failed_and_one_ok,
    "cli-no-epochs-in-sweep": no_sweep_folder,
    "record-deep-nesting": one_row_of_97,
    "record-huge-int": one_row_of_97,
    "record-hash-mismatch": one_row_of_97,
    "record-names": harmless_names,
}
