from __future__ import annotations

import csv
import io

import pytest

from vpeft_bench.formats import markdown, printable, printable_lines, to_csv, to_markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vpt_deep 96.5 ± 0.3 – Zürich 図", "vpt_deep 96.5 ± 0.3 – Zürich 図"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("half \udcff", "half \\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert "".join(shown).isprintable()


def test_meant_line_breaks_stay() -> None:
    assert printable_lines("a\nb\x07") == "a\nb\\x07"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("=1+1", "'=1+1"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("@cmd", "'@cmd"),
        ("\t=1+1", "\\t=1+1"),
        ("-0.5", "-0.5"),
        ("+1e-05", "+1e-05"),
        ("lora", "lora"),
        ("", ""),
    ],
)
def test_a_spreadsheet_finds_no_formula(text: str, field: str) -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv([{"name": text, "n": "1"}])))
    assert row == {"name": field, "n": "1"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("[link](x) ![y](z)", "\\[link\\](x) !\\[y\\](z)"),
        ("**bold** `code`", "\\*\\*bold\\*\\* \\`code\\`"),
        ("_slanted_ vpt_deep", "\\_slanted\\_ vpt_deep"),
        ("first\n# second", "first\\\\n# second"),
        ("# heading", "\\# heading"),
        ("96.50 ± 0.30 (3)", "96.50 ± 0.30 (3)"),
        ("rank=8 alpha=16.0", "rank=8 alpha=16.0"),
    ],
)
def test_markdown_shows_a_name_word_for_word(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_a_row_of_markdown_stays_a_row() -> None:
    lines = to_markdown([{"name": "a|b\n| c", "empty": "", "n": "1"}]).splitlines()
    assert lines == ["| name | n |", "| --- | --- |", "| a\\|b\\\\n\\| c | 1 |"]
