"""What the page holds before any script runs: numbers, statements, names that are no markup."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.leaderboard.conftest import make_card, make_run
from tests.leaderboard.page.conftest import (
    FORMULA,
    LONG,
    QUOTES,
    SCRIPT,
    VTAB,
    everything,
    page_of,
)
from tests.running import config_of
from vpeft_bench.config.benchmarks import known
from vpeft_bench.config.identity import asked_hash, scientific
from vpeft_bench.config.schema import plain
from vpeft_bench.leaderboard.departures import settings_of
from vpeft_bench.leaderboard.origin import commands, overrides
from vpeft_bench.leaderboard.page import html
from vpeft_bench.records.run_record import RunRecord


class Parsed(HTMLParser):
    """Tables as lists of rows of texts, and what tags and addresses there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data

    def board(self, number: int) -> list[dict[str, str]]:
        """The rows of a table by title of the column."""
        head, *rows = self.tables[number]
        return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    return Parsed(text)


def rows_named(parsed: Parsed, title: str) -> dict[str, dict[str, str]]:
    for number, table in enumerate(parsed.tables):
        if title in table[0]:
            return {row["variant"].strip(): row for row in parsed.board(number)}
    raise AssertionError(title)


def test_the_tables_hold_the_numbers_of_the_csv_files(folder: Path, parsed: Parsed) -> None:
    with (folder / "out" / "vtab1k_final_summary.csv").open() as file:
        expected = list(csv.DictReader(file))
    rows = rows_named(parsed, "mean over 19 datasets")
    assert set(rows) == {"lora", "lora rank=16", "ssf", "linear", "adapter"}
    for one in expected:
        name = f"{one['method']} {one['options']}".strip()
        for column in ("mean over 19 datasets", "mean over 3 groups", *VTAB.datasets):
            shown = rows[name][column].split()[0]
            if one[column]:
                assert shown == f"{float(one[column]):.2f}", (name, column)
            else:
                assert shown in ("–", "failed"), (name, column)
    assert rows["adapter"]["mean over 19 datasets"] == "–"
    assert rows["adapter"]["complete"] == "18/19"


def test_a_missing_mean_says_why(text: str) -> None:
    missing = VTAB.datasets[3]
    assert f'title="no mean: {missing}: failed"' in text
    assert 'title="1 x failed: RuntimeError: &lt;script&gt;' in text


def test_the_first_sentence_says_who_is_best_and_how_sure_that_is(text: str) -> None:
    verdicts = re.findall(r'<p class="verdict">(.*?)</p>', text, re.S)
    assert "paired bootstrap over data sets, Holm, 5 %" in verdicts[1]
    assert "19 data sets" in verdicts[1]


def test_names_are_no_markup(text: str, parsed: Parsed) -> None:
    assert parsed.tags.count("script") == 1
    assert SCRIPT not in text
    assert text.count("</script>") == 1
    assert "b" not in parsed.tags  # of the name with quotes; no table has groups here
    names = {row[0].strip() for table in parsed.tables for row in table}
    assert {SCRIPT, FORMULA, LONG} <= names
    assert QUOTES.replace("\u202e", "\\u202e") in names


def test_it_asks_nothing_of_any_network(text: str, parsed: Parsed) -> None:
    assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert all(one.startswith("#") or one == "data:," for one in parsed.addresses)
    assert "default-src 'none'" in text
    assert not {"link", "img", "iframe"} & (set(parsed.tags) - {"link"})


def test_data_sets_of_no_benchmark_and_costs_have_tables(text: str) -> None:
    assert "Data sets of no benchmark, test images" in text
    assert "66.25" in text
    assert "Costs: one row per cost card" in text


def test_rows_of_unlike_budgets_stand_apart(tmp_path: Path) -> None:
    records = [
        make_run(
            70.0 + bonus + number,
            data=data,
            benchmark="vtab1k",
            method=method,
            options={},
            train={"lr": 1e-3, "epochs": epochs},
        )
        for method, epochs, bonus in (("lora", 100, 0), ("ssf", 100, -1), ("adapter", 2, 5))
        for number, data in enumerate(VTAB.members)
    ]
    text = page_of(tmp_path, records)
    verdicts = re.findall(r'<p class="verdict">(.*?)</p>', text, re.S)
    assert len(verdicts) == 2
    assert "epochs=2" in verdicts[1]
    assert "One row: nothing to compare it with." in verdicts[1]
    assert "adapter" not in verdicts[0]


def test_one_row_one_run_and_no_card(tmp_path: Path) -> None:
    text = page_of(tmp_path, [make_run(50.0)])
    assert "One row: nothing to compare it with." in text
    assert "matrix" not in Parsed(text).tags
    assert "50.00" in text


def test_tables_of_several_backbones_are_called_after_them(tmp_path: Path) -> None:
    text = page_of(tmp_path, [make_run(50.0), make_run(60.0, backbone="other")])
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert titles == [
        "demo, test images; backbone demo_vit",
        "demo, test images; backbone other",
    ]
    assert "1 row, 4 data sets, 1 run" in text


def test_equal_means_are_told_as_equal(tmp_path: Path) -> None:
    data = [f"demo/{name}" for name in known()["demo"].datasets]
    records = [make_run(50.0, data=d, method=m, options={}) for d in data for m in ("ssf", "lora")]
    assert "lora, ssf have the same mean, the best." in page_of(tmp_path, records)


def test_cards_alone_have_a_page(tmp_path: Path) -> None:
    parsed = Parsed(page_of(tmp_path, [], [make_card()]))
    assert [row[0] for row in parsed.tables[0]] == ["row", "lora"]


def test_the_same_records_give_the_same_page(folder: Path, text: str, tmp_path: Path) -> None:
    records, cards = everything()
    random.Random(1).shuffle(records)
    random.Random(2).shuffle(cards)
    assert page_of(tmp_path, records, cards) == text


def test_a_page_that_is_too_large_leaves_out_what_files_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    most = len(text.encode()) * 3 // 4
    monkeypatch.setattr(html, "MOST_BYTES", most)
    smaller = page_of(tmp_path, *everything())
    assert len(smaller.encode()) <= most
    assert "left out, for size" in smaller
    assert "mean over 19 datasets" in smaller


# ---- where a row comes from ----------------------------------------------------------------------


def asked_record(*overrides: str) -> RunRecord:
    """A record as if a run of these overrides had been made."""
    return replace(make_run(), asked=plain(config_of(*overrides)))


def overrides_of(record: RunRecord) -> list[str]:
    kept = scientific(record.asked, record.uncounted)
    return overrides(record, settings_of(kept, record.asked["task"]))


@pytest.mark.parametrize(
    "typed",
    [
        ("method=lora", "data=demo/digits"),
        ("method=lora", "method.targets=[q,k]", "method.alpha=3", "train.lr=0.004", "seed=7"),
        ("method=ssf", "data=demo/sprites_count", "train.epochs=3", "protocol=select"),
        ("data=demo/digits", "data.normalization=none", "task.mixup=0.2", "train.optimizer=sgd"),
        ("method=adapter", "train.milestones=[1,2]", "train.clip_norm=1", "train.epochs=4"),
    ],
)
def test_the_command_makes_the_same_run_again(typed: tuple[str, ...]) -> None:
    record = asked_record(*typed)
    data, seed = record.asked["data"]["name"], record.asked["seed"]
    (command,) = commands([(data, json.dumps(overrides_of(record)), [seed])])
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "vpeft_bench"]
    again = plain(config_of(*words[3:]))
    assert again["seed"] == seed
    assert asked_hash(again, "d", "w") == asked_hash(record.asked, "d", "w")


def test_a_variant_is_named_and_not_set_again() -> None:
    record = asked_record("variant=lora/vpetl", "data=vtab1k/cifar", "data.root=x")
    said = overrides_of(record)
    assert said[0] == "variant=lora/vpetl"
    variant = record.asked["variant"]
    set_there = {*variant["settings"], *variant["per_data"].get("vtab1k/cifar", {})}
    assert not set_there & {one.partition("=")[0] for one in said}


def test_cells_that_differ_in_data_and_seed_share_a_command() -> None:
    same = json.dumps(["method=lora", "train.lr=0.1"])
    other = json.dumps(["method=lora", "train.lr=0.2"])
    found = commands([("a", same, [1, 0]), ("b", same, [0, 1]), ("c", other, [3])])
    assert found == [
        "python -m vpeft_bench -m method=lora data=a,b seed=0,1 train.lr=0.1",
        "python -m vpeft_bench method=lora data=c seed=3 train.lr=0.2",
    ]
