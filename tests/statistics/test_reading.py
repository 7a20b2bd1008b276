"""CSV files as people have them: what is understood, and what each mistake is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.statistics.conftest import drawn, long
from vpeft_bench.errors import ConfigError
from vpeft_bench.statistics import Report, analyse
from vpeft_bench.statistics.reading import kept, parse_condition, read_csv, with_roles

Write = Callable[[str | bytes], Path]
TINY = "method,data,seed,value\na,d0,0,90.5\na,d1,0,80\nb,d0,0,85\nb,d1,0,82.25\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: str | bytes) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


def reports(path: Path, *where: str, **columns: str) -> list[Report]:
    frame, _ = with_roles(kept(read_csv(path), [parse_condition(w) for w in where]), columns)
    return analyse(frame)


def refusal(path: Path, *where: str, **columns: str) -> str:
    with pytest.raises(ConfigError) as caught:
        reports(path, *where, **columns)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        TINY,
        "\ufeff" + TINY,
        TINY.replace(",", ";"),
        TINY.replace(",", ";").replace(".", ","),
        TINY.replace(",", "\t"),
        TINY.replace(",", ", "),
        TINY.replace("\n", "\r\n"),
        TINY.replace("\n", "\n\n").rstrip("\n"),
        "\n".join(f",{line}" for line in TINY.splitlines()),  # as pandas writes an index
        TINY.replace("\na,", '\n"a",').replace("d1", '"d1"'),
    ],
    ids=[
        "plain",
        "byte order mark",
        "semicolons",
        "decimal commas",
        "tabs",
        "spaces",
        "CRLF",
        "blank lines",
        "index",
        "quotes",
    ],
)
def test_forms_of_one_table(content: str, write: Write) -> None:
    (report,) = reports(write(content))
    assert {r.method: r.mean.value for r in report.summaries} == {"a": 85.25, "b": 83.625}


def test_no_seed_column_is_one_run_per_cell(write: Write) -> None:
    (report,) = reports(write("method,data,value\na,d0,90\na,d1,80\nb,d0,85\nb,d1,82\n"))
    assert report.table.per_cell_of_all == (1, 1)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty", "method,data,seed,value"]),
        ("\n\n", ["is empty"]),
        ("method,data,seed,value\n", ["column names only"]),
        (TINY.encode("utf-16"), ["not UTF-8", "save it as CSV"]),
        (TINY.replace("method", "model"), ["column method", "--method-column model"]),
        (TINY.replace("data", "dataset"), ["column data", "--data-column dataset"]),
        (TINY.replace("value", "top1"), ["column value", "--value-column top1", "made long"]),
        ("method,cifar,dtd\na,90,80\n", ["--data-column NAME", "made long"]),
        (TINY.replace("value", "vaule"), ["--value-column vaule"]),
        ("method,data,data,value\na,d,d,1\n", ["2 columns called data"]),
        (TINY + "c,d0,0\n", ["line 6", "has 3 fields", "has 4"]),
        (TINY + "c,d,0,0,90\n", ["line 6", "has 5 fields"]),
        (TINY + '"c,d0,0,90\n', ["line 6"]),
        (TINY.replace("80", "80%"), ["line 3", "'80%'", "write 80"]),
        (TINY.replace("80", '"80,5"'), ["line 3", "write 80.5"]),
        (TINY.replace("80", "80 ± 2"), ["line 3", "no number"]),
        (TINY.replace("80", "inf"), ["line 3", "no number"]),
        (TINY.replace("80", "1e999"), ["line 3", "no number"]),
        (TINY.replace("80", "diverged"), ["line 3", "'diverged'", "leave it empty"]),
        (TINY.replace("a,d0", ",d0"), ["column method", "is empty in line 2"]),
        (TINY + "b,d1,0,82.25\n", ["method b, data d1, seed 0", "2 rows (lines 5, 6)", "remove"]),
        (TINY + "b,d1,0,70\n", ["method b, data d1, seed 0", "they differ in value"]),
        ("method,data,seed,value\na,d0,0,\n", ["hold no value at all"]),
    ],
)
def test_mistakes(content: str | bytes, parts: list[str], write: Write) -> None:
    said = refusal(write(content))
    assert [part for part in parts if part not in said] == [], said


def test_no_such_file(tmp_path: Path, write: Write) -> None:
    write(TINY)
    assert "did you mean" in refusal(tmp_path / "tables.csv")
    assert "no such file" in refusal(tmp_path / "nowhere" / "tables.csv")
    assert "is a folder" in refusal(tmp_path)


def test_duplicates_say_what_tells_them_apart(write: Write) -> None:
    """A column of the file that counts for nothing may be the one that was forgotten."""
    rows = [
        f"{method},d{d},0,{80 + d},{note},{number}"
        for number, note in enumerate(("last epoch", "best epoch"))
        for method in "ab"
        for d in range(3)
    ]
    path = write("\n".join(["method,data,seed,value,note,line", *rows]))
    said = refusal(path)
    assert "they differ in note, line" in said
    assert "--where 'note!=best epoch'" in said
    assert "3 more of the same kind" in said
    assert len(reports(path, "note!=best epoch")) == 1


def test_where(write: Write) -> None:
    path = write(TINY + "c,d0,0,70\nc,d1,0,60\n")
    assert len(reports(path, "method!=c")[0].summaries) == 2
    assert len(reports(path, "method=a,c")[0].summaries) == 2
    assert reports(path, "data=d0", "method!=c")[0].table.datasets == ("d0",)
    assert "did you mean method" in refusal(path, "metod=a")
    assert "did you mean c" in refusal(path, "method!=C")
    assert "leaves no row" in refusal(path, "method=a", "method=b")
    assert parse_condition('note="a, b",c').values == ("a, b", "c")
    assert parse_condition("note=").values == ("",)
    for text in ("method", "=a", "!=a"):
        with pytest.raises(ValueError, match="is not COLUMN=VALUE"):
            parse_condition(text)


def test_columns_by_name(write: Write) -> None:
    content = TINY.replace("method,data,seed,value", "row,task,run,top1")
    path = write(content)
    columns = {"method": "row", "data": "task", "seed": "run", "value": "top1"}
    assert len(reports(path, **columns)[0].summaries) == 2
    assert "did you mean task" in refusal(path, **(columns | {"data": "tusk"}))
    assert "cannot be both" in refusal(path, **(columns | {"data": "row"}))


def test_a_variant_can_be_the_method(write: Write) -> None:
    content = "method,variant,data,value\nlora,lora/a,d0,90\nlora,lora/b,d0,80\nssf,ssf/a,d0,70\n"
    (report,) = reports(write(content), method="variant")
    assert report.table.methods == ("lora/a", "lora/b", "ssf/a")


def test_a_variant_is_a_condition_or_the_name_of_a_row(write: Write) -> None:
    """As this package calls them: ``lora/tuned@8`` by tune, ``lora rank=4`` by its options."""
    rows = "lora,lora,d0,90\nlora,lora rank=4,d0,80\nssf,,d0,70\n"
    rows += "lora,lora/tuned@8,d0,95\nssf,tuned@8,d0,75\n"
    path = write("method,variant,data,value\n" + rows)
    default, tuned = reports(path)
    assert (default.table.settings, default.table.methods) == ({}, ("lora", "lora rank=4", "ssf"))
    assert (tuned.table.settings, tuned.table.methods) == ({"variant": "tuned@8"}, ("lora", "ssf"))
    assert any("no column budget" in note for note in tuned.table.notes)
    assert not default.table.notes
    frame, _ = with_roles(read_csv(path), {})
    (mixed,) = analyse(frame, mix=True)
    assert mixed.table.mixed == {"variant": ("", "tuned@8")}
    assert "lora [tuned@8]" in mixed.table.methods


def test_a_missing_value_is_a_missing_cell(write: Write) -> None:
    for word in ("", "nan", "NaN", "-", "–", "n/a"):
        (report,) = reports(write(TINY.replace("80", word)))
        assert report.summaries[-1].missing == ("d1",)


# ---- what a frame can have wrong -----------------------------------------------------------------


def refused(frame: pd.DataFrame) -> str:
    with pytest.raises(ConfigError) as caught:
        analyse(frame)
    return str(caught.value)


def test_frames() -> None:
    frame = drawn(methods=2, seeds=1)
    assert "column value: is missing" in refused(frame.drop(columns="value"))
    assert "has no rows" in refused(frame[:0])
    assert "holds text" in refused(frame.assign(value="90"))
    assert "not finite in row 0" in refused(frame.assign(value=[np.inf, *frame["value"][1:]]))
    assert "data d00: is in several groups" in refused(
        frame.assign(group=["x" if m == "m0" else "y" for m in frame["method"]])
    )


def test_fractions_among_percentages() -> None:
    frame = drawn(methods=3, datasets=6, seeds=2)
    by_method = frame["value"].where(frame["method"] != "m1", frame["value"] / 100)
    said = refused(frame.assign(value=by_method))
    assert "method m1" in said
    assert "--unlike-scales" in said
    by_data = frame["value"].where(frame["data"] != "d03", frame["value"] / 100)
    assert "data d03" in refused(frame.assign(value=by_data))
    assert analyse(frame.assign(value=by_data), unlike_scales=True)
    one = frame.copy()
    one.loc[3, "value"] /= 100
    assert "row 3: 0." in refused(one)
    seeds = long({"a": [90.0, 0.91], "b": [80.0, 81.0]}).assign(data="d", seed=[0, 1, 0, 1])
    assert "row 1: 0.91 on d, where others have 90" in refused(seeds)
    put_together = pd.concat([seeds[:2], seeds[2:].reset_index(drop=True)])
    assert "row 1: 0.91 on d, where others have 90" in refused(put_together)
    # All fractions are no mistake, nor are losses around 1.
    losses = drawn(methods=3, datasets=6, seeds=1).assign(value=lambda f: f["value"] / 60)
    assert analyse(losses, lower_is_better=True)
    # One collapsed run is none either, and is pointed at.
    assert analyse(frame.assign(value=frame["value"] / 100))[0].table.top == 1
    collapsed = frame.copy()
    collapsed.loc[3, "value"] = 0.1
    (report,) = analyse(collapsed)
    assert any("row 3: at or below 1" in note for note in report.table.notes)


def test_names_that_differ_in_case_are_pointed_at() -> None:
    (report,) = analyse(long({"LoRA": [90, 80], "lora": [80, 70]}))
    assert any("LoRA, lora" in note for note in report.table.notes)
