"""Files for papers and programs: LaTeX, JSON with its schema, and what statistics read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.leaderboard.as_rows import cells, datasets, gather, gather_cards, in_file, summaries
from vpeft_bench.config.benchmarks import known
from vpeft_bench.leaderboard.column import In
from vpeft_bench.leaderboard.tables import cost_table, run_table
from vpeft_bench.leaderboard.written import (
    column_docs,
    latex,
    schema,
    to_latex,
    to_markdown,
    write_json,
)
from vpeft_bench.records.cost_card import CardStatus, CostCard
from vpeft_bench.records.run_record import RunRecord, Status

Run = Callable[..., RunRecord]
Card = Callable[..., CostCard]
DEMO = known()["demo"]
TOPS = {"lora": 80.0, "ssf": 80.004, "full": 70.0}


def demo_runs(run: Run) -> list[RunRecord]:
    return [
        run(top1 + seed, data=f"demo/{name}", method=method, seed=seed)
        for method, top1 in TOPS.items()
        for name in DEMO.datasets
        for seed in (0, 1)
        if (method, seed) != ("full", 1)
    ]


def rows_of_latex(text: str) -> list[list[str]]:
    """The cells of a tabular; fails where a row has another number of them than columns."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    (begin,) = (line for line in lines if line.startswith(r"\begin{tabular}"))
    columns = len(re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", begin)[1])  # type: ignore[index]
    order = [line for line in lines if line.startswith(("\\top", "\\mid", "\\bottom", "\\end"))]
    assert order == [r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"]
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) + len(order) + 1 == len(lines)
    parsed = [re.split(r"(?<!\\) ?& ?", row.removesuffix(r" \\")) for row in rows]
    assert {len(row) for row in parsed} == {columns}
    for row in parsed:
        for cell in row:
            plain = re.sub(r"\\(text\w+)(\{\})?|\\pm|\\[&%$#_{}]", "", cell)
            assert plain.count("{") == plain.count("}")
            assert plain.count("$") % 2 == 0
            assert not re.search(r"[&%#_~^\\<>|]", plain)
    return parsed


def test_latex_marks_the_best_of_each_column_and_shows_deviations(run: Run) -> None:
    (summary,) = summaries(cells(*demo_runs(run)))
    head, *rows = rows_of_latex(to_latex(summary, ["a note: 100 %"]))
    by_name = {row[head.index("method")]: dict(zip(head, row, strict=True)) for row in rows}
    mean = "mean over 4 datasets"
    # What is printed equal is as good.
    assert by_name["lora"][mean] == r"\textbf{80.50}"
    assert by_name["ssf"]["digits"] == r"\textbf{80.50 $\pm$ 0.71 (2)}"
    assert by_name["full"]["digits"] == "70.00 (1)"
    assert "sprites\\_count" in head


def test_latex_of_data_sets_marks_the_best_on_each(run: Run) -> None:
    head, *rows = rows_of_latex(to_latex(datasets(cells(*demo_runs(run))), []))
    best = [row for row in rows if row[head.index(r"top-1 \%")].startswith(r"\textbf")]
    assert len(best) == 2 * len(DEMO.datasets)


def test_no_name_has_an_effect_in_latex(run: Run) -> None:
    odd = r"\input{x} & % $ # _ { } ~ ^ < > | " + '"' + "\n\x1b[31m é"
    rows_of_latex(to_latex(datasets(cells(run(50, method=odd))), [odd]))
    assert latex("a_b & 50 %") == r"a\_b \& 50 \%"
    assert "\n" not in latex(odd)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(run: Run, tmp_path: Path) -> None:
    (summary,) = summaries(cells(*demo_runs(run)))
    text = to_latex(summary, [])
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs}"
    page = rf"\documentclass{{article}}{packages}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_json_follows_its_schema_and_has_the_values_of_the_csv(
    run: Run, card: Card, tmp_path: Path
) -> None:
    runs = [*demo_runs(run), run(method="bitfit", status=Status.OOM), run(99, method="<script>")]
    cards = [card(), card(method="ssf", status=CardStatus.OOM)]
    found = cells(*runs, cards=cards)
    table, overviews = datasets(found), summaries(found)
    costs = cost_table(gather_cards(*cards).rows)
    paths = write_json([table], overviews, costs, ["a note"], tmp_path)
    content, written = (json.loads(path.read_text()) for path in paths)
    assert written == schema()
    jsonschema.Draft202012Validator.check_schema(written)
    jsonschema.validate(content, written)
    for line, row in zip(in_file(table), content["datasets"][0]["rows"], strict=True):
        assert line.keys() == row.keys()
        for name, text in line.items():
            number = isinstance(row[name], int | float)
            assert (float(text) if number else text) == (row[name] if text else "")
    assert [one["benchmark"] for one in content["summaries"]] == ["demo"]
    for wrong in (
        {**content, "more": 1},
        {**content, "datasets": [{**content["datasets"][0], "rows": [{"mean": "60"}]}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, written)


def test_no_number_of_a_file_is_text(run: Run) -> None:
    (row,) = in_file(datasets(cells(run(1 / 3, seed=0), run(2 / 3, seed=1))))
    names = ["mean", "std", "n", "ci_low", "ci_high", "min", "max", "parameters_method", "ppt"]
    assert [float(row[name]) for name in names]
    assert row["mean"] == "0.5"


def test_every_run_is_a_row_of_its_own(run: Run) -> None:
    runs = [run(60.0), run(70.0, seed=1), run(seed=2, status=Status.FAILED, error="no")]
    lines = in_file(run_table(gather(*runs).rows))
    assert [(line["seed"], line["value"], line["status"]) for line in lines] == [
        ("0", "60", "ok"),
        ("1", "70", "ok"),
        ("2", "", "failed"),
    ]
    assert {line["method"] for line in lines} == {"lora"}


def test_markdown_has_no_column_that_is_empty(run: Run) -> None:
    text = to_markdown(datasets(cells(run(60))), ["note"])
    head = text.splitlines()[4]
    assert "not finished" not in head
    assert "± std" in head


def test_titles_and_keys_are_used_once(run: Run, card: Card) -> None:
    found = cells(*demo_runs(run), cards=[card()])
    runs = run_table(gather(run()).rows)
    costs = cost_table(gather_cards(card()).rows)
    for table in (datasets(found), *summaries(found), runs, costs):
        for where in (In.FILES, In.PAGES, In.TERMINAL):
            names = [c.key if where is In.FILES else c.title for c in table.of(where)]
            assert len(set(names)) == len(names)


def test_the_page_on_columns_is_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "leaderboard-columns.md"
    assert page.read_text() == column_docs(), "run scripts/generate_docs.py"
