"""What does not agree within the published tables, computed from ``results/published``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from statistics import fmean, median

from vpeft_bench.config.benchmarks import known
from vpeft_bench.formats import markdown_of
from vpeft_bench.leaderboard.published import lines
from vpeft_bench.leaderboard.scores import Scores

PAGE = "docs/published-inconsistencies.md"
VTAB, FGVC, LONG = "vtab1k_vit_b16", "fgvc_vit_b16", "vtab1k_other_sources_long"
STORED = "vtab1k_group_mean_storage_bi_adapter"
SCORES = (
    (VTAB, "mean", "ppt"),
    (FGVC, "mean", "ppt"),
    ("coco_swin_b", "ap_box", "ap_box_ppt"),
    ("coco_swin_b", "ap_mask", "ap_mask_ppt"),
    ("voc_ade20k_swin_l", "voc_ap_box", "voc_ppt"),
    ("voc_ade20k_swin_l", "ade20k_miou", "ade20k_ppt"),
    ("video", "ssv2_top1", "ssv2_ppt"),
    ("video", "hmdb51_top1", "hmdb51_ppt"),
)
"""Tables with a score: its metric, and the score."""
_WIDTH = 768
"""Of the features of ViT-B/16, which a linear head maps to classes."""
_NEARER = 5.0
"""Points by which two cells must come nearer to their columns when exchanged."""

Rows = Iterator[Sequence[str]]


def page(mean_classes: Callable[[str], float]) -> str:
    """The page.

    Args:
        mean_classes: of a benchmark the classes per data set, on average.
    """
    head = {name: (_WIDTH + 1) * mean_classes(name) / 1e6 for name in ("vtab1k", "fgvc")}
    parts = [
        _HEAD,
        "## Scores that do not follow from their row",
        _PPT,
        _table("file, row, score, printed, computed, possible, remark", wrong_scores()),
        "## Means that do not follow from their row",
        _table("file, row, printed, computed", wrong_means()),
        "## Two means under one word",
        _MEANS,
        _table("file, row, printed, over 19 data sets, over 3 groups, difference", two_means()),
        "## The head is counted, or not",
        _HEADS.format(fgvc=head["fgvc"], vtab=head["vtab1k"]),
        _table(
            "row, VTAB-1k (M), head in it, FGVC (M), head in that, difference (M), remark",
            heads(head["fgvc"]),
        ),
        "## One number of parameters for two methods",
        "In the tables of dense prediction.",
        _table("file, row, other row, parameters (M)", same_parameters()),
        "## Cells that look exchanged",
        _EXCHANGED,
        _table("file, row, cells, printed, medians of the other rows", exchanged()),
        "## Rows that stand in two tables",
        "The same printed value on every data set: at least one of them is a quotation.",
        _table("row, file and source, other file and source, equal cells", twins()),
        "## Several values of one cell",
        _DOUBLES,
        _table("data set, row, first, second", doubles()),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _table(names: str, rows: Rows) -> str:
    """Columns parted by commas; where there is no row it says so."""
    listed = list(rows)
    if not listed:
        return "None."
    of_rows = zip(*listed, strict=True)
    return markdown_of(dict(zip(names.split(", "), map(list, of_rows), strict=True)))


_HEAD = """
# Where published tables do not agree with themselves

Written by `scripts/generate_docs.py` from the tables in
[results/published](../results/published/README.md), which are kept as printed.
""".strip()
_PPT = """
PPT = M · exp(-log10(P / 10^7 + 1)), from the printed metric M and the printed parameters P.
*Possible* is what it can be if both were rounded before they were printed; a score is listed that
lies outside when it is rounded itself.
""".strip()
_MEANS = f"""
For the same rows `{VTAB}.csv` prints the mean over 19 data sets, and
`{STORED}.csv` the mean over the means of 3 groups.
""".strip()
_HEADS = """
Methods of both tables, and whose mean head their printed parameters count: that of FGVC has
{fgvc:.3f} M, that of VTAB-1k {vtab:.3f} M. Which one it is was found by counting
([parameters.csv](../results/published/parameters.csv), [counts](methods/counts.md)). PPT is
computed from these numbers, so that it does not compare between such rows.
""".strip()
_EXCHANGED = f"""
Two cells of a row of which one lies outside the range of all other rows, and that both lie inside
when they are exchanged, {_NEARER:g} points or more nearer to the medians. This shows that they are
odd, not that they are wrong.
""".strip()
_DOUBLES = f"""
`{LONG}.csv` has two folders of runs for one data set. The first is compared with ours.
""".strip()


def wrong_scores() -> Rows:
    """PPT scores that no rounding of their row gives."""
    for table, metric, score in SCORES:
        for line in lines(table):
            if not line[score]:
                continue
            low, computed, high = (
                _ppt(float(line[metric]) + of * _half(line[metric]), _millions(line, -of))
                for of in (-1, 0, 1)
            )
            printed = float(line[score])
            if low < printed + 0.005 and high >= printed - 0.005:
                continue
            cut = math.floor(computed * 100 + 1e-9) / 100 == printed
            backbone = f" ({line['backbone']})" if "backbone" in line else ""
            yield (
                table,
                f"{line['method']}{backbone}",
                score,
                line[score],
                f"{computed:.4f}",
                f"{low:.4f} to {high:.4f}",
                "cut, not rounded" if cut else "",
            )


def _ppt(percent: float, millions: float) -> float:
    found = Scores().ppt(percent, millions * 1e6)
    assert found is not None
    return found


def _half(text: str) -> float:
    """Half a unit of the last printed digit."""
    return float(0.5 * 10 ** -len(text.partition(".")[2]))


def _millions(line: dict[str, str], of: int) -> float:
    text = line["params_m"]
    return max(0.0, float(text) + (of * _half(text) if float(text) else 0.0))


def wrong_means() -> Rows:
    """Means that are not those of the printed cells, rounding aside."""
    for table, benchmark in ((VTAB, "vtab1k"), (FGVC, "fgvc")):
        names = known()[benchmark].datasets
        for line in lines(table):
            computed = fmean(float(line[name]) for name in names)
            if abs(computed - float(line["mean"])) > 0.005 + 1e-9:
                yield table, line["method"], line["mean"], f"{computed:.4f}"


def two_means() -> Rows:
    """Both means of every row of VTAB-1k, and what is printed of it."""
    for line in lines(VTAB):
        plain, groups = _both_means(line)
        yield (
            VTAB,
            line["method"],
            line["mean"],
            f"{plain:.2f}",
            f"{groups:.2f}",
            _plus(groups - plain),
        )
    rows = {line["method"]: line for line in lines(VTAB)}
    called = {"Full": "Full fine-tuning", "Linear": "Linear probing", "VPT": "VPT-Deep"}
    for line in lines(STORED):
        if line["method"] in called:
            plain, groups = _both_means(rows[called[line["method"]]])
            printed = line["group_mean_acc"]
            yield (
                STORED,
                line["method"],
                printed,
                f"{plain:.2f}",
                f"{groups:.2f}",
                _plus(groups - plain),
            )


def _both_means(line: dict[str, str]) -> tuple[float, float]:
    benchmark = known()["vtab1k"]
    plain = fmean(float(line[name]) for name in benchmark.datasets)
    groups = [fmean(float(line[name]) for name in of) for of in benchmark.groups.values()]
    return plain, fmean(groups)


def _plus(value: float) -> str:
    return f"{value:+.2f}"


def heads(fgvc_head: float) -> Rows:
    """Methods of VTAB-1k's and FGVC's tables: does the head explain the difference?"""
    vtab = {line["method"]: line["params_m"] for line in lines(VTAB)}
    counted = {(line["table"][:4], line["row"]): line["head"] for line in lines("parameters")}
    for line in lines(FGVC):
        name, other = line["method"], line["params_m"]
        if name not in vtab:
            continue
        here, there = counted["VTAB", name], counted["FGVC", name]
        difference = float(other) - float(vtab[name])
        if difference and abs(difference - fgvc_head) < 0.005:
            remark = "the head"
        elif difference:
            remark = "not the head alone: other options"
        else:
            remark = "one value in both, with one head" if here else ""
        yield name, vtab[name], here, other, there, _plus(difference), remark


def same_parameters() -> Rows:
    """Two rows of a table of dense prediction that print the same trained parameters."""
    for table in ("coco_swin_b", "voc_ade20k_swin_l"):
        for one, other in combinations(lines(table), 2):
            if one["params_m"] == other["params_m"]:
                yield table, one["method"], other["method"], one["params_m"]


def exchanged() -> Rows:
    """Pairs of cells of one row that fit their columns better the other way round."""
    for table, benchmark in ((VTAB, "vtab1k"), (FGVC, "fgvc")):
        every = lines(table)
        for line in every:
            others = [other for other in every if other is not line]
            names = known()[benchmark].datasets
            of = {name: [float(other[name]) for other in others] for name in names}
            for one, two in combinations(names, 2):
                a, b = float(line[one]), float(line[two])
                at_a, at_b = median(of[one]), median(of[two])
                now = abs(a - at_a) + abs(b - at_b)
                then = abs(a - at_b) + abs(b - at_a)
                odd = not (_within(a, of[one]) and _within(b, of[two]))
                fit = _within(b, of[one]) and _within(a, of[two])
                if odd and fit and now - then >= _NEARER:
                    printed = f"{line[one]}, {line[two]}"
                    yield table, line["method"], f"{one}, {two}", printed, f"{at_a:g}, {at_b:g}"


def _within(value: float, others: Sequence[float]) -> bool:
    return min(others) <= value <= max(others)


def twins() -> Rows:
    """Rows of VTAB-1k that two sources print alike on all data sets."""
    names = known()["vtab1k"].datasets
    rows: dict[tuple[str, str], dict[str, float]] = {
        (line["method"], f"{VTAB}, A"): {name: float(line[name]) for name in names}
        for line in lines(VTAB)
    }
    for line in lines(LONG):
        row = rows.setdefault((line["method"], f"{LONG}, {line['paper']}"), {})
        row.setdefault(line["dataset"], float(line["acc"]))
    for (one, here), (other, there) in combinations(rows, 2):
        if rows[one, here] == rows[other, there]:
            yield one, here, there, str(len(names))


def doubles() -> Rows:
    """Cells of a long table that have two values."""
    first: dict[tuple[str, str, str], str] = {}
    for line in lines(LONG):
        key = line["paper"], line["method"], line["dataset"]
        if key in first:
            yield line["dataset"], line["method"], first[key], line["acc"]
        first.setdefault(key, line["acc"])
