"""The generated pages are those of the code, and the published counts are quoted as printed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from vpeft_bench.catalogue.counts import Published, mean_classes, read_published
from vpeft_bench.catalogue.pages import FOLDER, all_pages, with_methods
from vpeft_bench.catalogue.probe import probe
from vpeft_bench.methods.registry import list_methods, option_problems

FOLDER_OF_A = REPOSITORY / "results" / "published"
PUBLISHED = read_published(FOLDER_OF_A / "parameters.csv")

# Files of source A, by the name of the table in parameters.csv.
TABLES = {
    "VTAB-1k, ViT-B/16": "vtab1k_vit_b16.csv",
    "FGVC, ViT-B/16": "fgvc_vit_b16.csv",
    "COCO, Swin-B": "coco_swin_b.csv",
    "Pascal VOC and ADE20K, Swin-L": "voc_ade20k_swin_l.csv",
    "Video, ViT-B": "video.csv",
    "Video, Video Swin-B": "video.csv",
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return all_pages(REPOSITORY)


@pytest.mark.slow
def test_pages_are_current(pages: dict[str, str]) -> None:
    stale = [
        path
        for path, text in pages.items()
        if not (REPOSITORY / path).is_file() or (REPOSITORY / path).read_text() != text
    ]
    assert stale == [], "run: python scripts/generate_docs.py"


@pytest.mark.slow
def test_no_claim_is_contradicted(pages: dict[str, str]) -> None:
    """The probes are those that the pages were made of."""
    found = {name: probe(name).contradictions for name in list_methods()}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.slow
def test_no_page_is_left_over(pages: dict[str, str]) -> None:
    there = {f"{FOLDER}/{path.name}" for path in (REPOSITORY / FOLDER).iterdir()}
    assert there == {path for path in pages if path.startswith(FOLDER)}


def test_every_method_has_a_page_and_a_place_in_the_index() -> None:
    """Of the pages as they are stored; that these are the generated ones is tested above."""
    folder = REPOSITORY / FOLDER
    assert len(list_methods()) >= 10
    for name in list_methods():
        page = (folder / f"{name}.md").read_text()
        assert page.count(f"python -m vpeft_bench method={name}") == 1
        for index in ("README", "capabilities"):
            assert f"[`{name}`]({name}.md)" in (folder / f"{index}.md").read_text()


def test_the_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="methods: generated"):
        with_methods("# A page\n")


# ---- published counts ---------------------------------------------------------------------------


def test_mean_heads() -> None:
    assert mean_classes("vtab1k") == 940 / 19
    assert mean_classes("fgvc") == (200 + 555 + 102 + 120 + 196) / 5


@pytest.mark.parametrize("table", TABLES)
def test_source_a_is_quoted_as_printed(table: str) -> None:
    """Every row of the table that has a count, and no other value."""
    with (FOLDER_OF_A / TABLES[table]).open(newline="") as file:
        printed = {
            (row["method"], row["params_m"])
            for row in csv.DictReader(file)
            if row.get("backbone", table.split(", ")[1]) == table.split(", ")[1]
        }
    quoted = {(row.row, row.params_m) for row in PUBLISHED if row.table == table}
    if table.startswith("Video"):  # the frozen rows are 0, as everywhere
        printed = {(method, value) for method, value in printed if method != "Frozen"}
    assert quoted == printed


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.table}-{row.row}")
def test_a_row_agrees_or_says_why_not(row: Published) -> None:
    assert row.method in list_methods()
    assert row.agrees() or row.explanation
    assert row.head in ("", "vtab1k", "fgvc")


def test_rounding_is_that_of_the_table() -> None:
    def row(params_m: str) -> Published:
        return Published("ssf", "SSF", "vit_b16", "", params_m, "", "", "", "")  # 205,824

    assert row("0.21").agrees()
    assert row("0.2").agrees()
    assert row("0.206").agrees()
    assert not row("0.20").agrees()
    assert not row("0.205").agrees()


def test_per_task_options_are_averaged() -> None:
    row = Published(
        "lora", "", "vit_b16", "", "0", "3*rank=8; rank=16 targets=[qkv]", "fgvc", "", ""
    )
    per_rank = 4 * 768 * 12
    assert row.ours() == round(per_rank * (3 * 8 + 16) / 4 + 769 * mean_classes("fgvc"))
    assert list(row.option_sets()) == [(3, "rank=8"), (1, "rank=16 targets=[qkv]")]
    assert option_problems("lora", {"rank": 16, "targets": ["qkv"]}) == []


def test_readme_of_the_published_numbers_names_the_file() -> None:
    assert "`parameters.csv`" in Path(FOLDER_OF_A, "README.md").read_text()
