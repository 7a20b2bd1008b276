"""The sentences that the statistics support, each with its procedure and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from vpeft_bench.statistics.family import ALPHA
from vpeft_bench.statistics.pairs import Pair
from vpeft_bench.statistics.report import Report
from vpeft_bench.statistics.summary import MethodSummary
from vpeft_bench.statistics.table import Table
from vpeft_bench.statistics.wording import (
    Numbers,
    counted,
    mean_names,
    p_text,
    places_text,
    remarks,
    rests_on,
    span_text,
)


@dataclass(frozen=True)
class Section:
    """Sentences of one kind, and what holds for all of them."""

    title: str
    sentences: tuple[str, ...]
    about: str = ""


def sections(report: Report) -> list[Section]:
    """All sentences of a table."""
    numbers, kind = Numbers(report.table), kind_of_intervals(report)
    found = [
        Section("What was read", (f"{rests_on(report.table)}.", *map(_sentence, remarks(report)))),
        Section(
            "Each method",
            tuple(_of_method(row, report, numbers) for row in report.summaries),
            f"Intervals: {kind}. Over data sets: if other data sets of the kind were "
            "drawn. Over seeds: if the runs on these data sets were repeated. Whether two methods "
            "differ cannot be read from whether their intervals overlap: see the pairs.",
        ),
    ]
    if together := of_all(report):
        about = "These depend on who is compared, and may change with every method added."
        found.append(Section("All methods together", tuple(together), about))
    if report.pairs:
        chance = len(report.pairs) * ALPHA
        about = (
            f"Each pair by itself: no other method changes what is said of it. {kind}, paired over "
            "data sets; p of Wilcoxon's signed-rank test, uncorrected. If no two methods differed, "
            f"about {chance:.2g} of {counted(len(report.pairs), 'such statement')} would tell two "
            "apart by chance: what holds for all of them together is said above."
        )
        ordered = sorted(report.pairs, key=lambda pair: (pair.first, pair.second))
        sentences = tuple(of_pair(pair, report.table) for pair in ordered)
        found.append(Section("Each pair", sentences, about))
    return found


def kind_of_intervals(report: Report) -> str:
    """How every interval was made."""
    bootstrap = report.bootstrap
    how = f"{bootstrap.resamples:,} resamples from seed {bootstrap.seed}"
    return f"{bootstrap.confidence * 100:g} % percentile bootstrap, {how}"


def of_pair(pair: Pair, table: Table) -> str:
    """What the table says of two methods; nothing in it depends on a third."""
    if pair.difference is None:
        return f"{pair.first} and {pair.second} have no data set in common: nothing can be said."
    numbers = Numbers(table, pair.names)
    on = f"{counted(pair.datasets, 'common data set')}, {_runs(pair, numbers)}"
    counts = f"better on {pair.wins}, equal on {pair.ties}, worse on {pair.losses}"
    difference = numbers.difference(pair.difference)
    facts = f"mean difference {difference}{numbers.unit}"
    for interval, what in ((pair.over_datasets, "data sets"), (pair.over_seeds, "seeds")):
        if interval is not None:
            facts += f", {numbers.interval(interval)} over {what}"
    facts += f"; {counts}"
    if pair.wilcoxon is not None:
        facts += f"; Wilcoxon p = {p_text(pair.wilcoxon)}"
    decides = pair.over_datasets or pair.over_seeds
    where = "on average" if pair.over_datasets else "on these data sets"
    if decides is None:
        verdict = f"{pair.first} and {pair.second} cannot be told apart: too few data sets and runs"
    elif decides.excludes_zero:
        verdict = f"{pair.first} is better than {pair.second} {where}"
    else:
        verdict = f"{pair.first} and {pair.second} are not told apart {where}"
    return f"{verdict}: {facts} ({on})."


def of_all(report: Report) -> list[str]:
    """What the table says of all methods together."""
    family, found = report.family, []
    among = f"{counted(len(family.methods), 'method')}, {counted(family.datasets, 'data set')}"
    if (friedman := family.friedman) is not None:
        verdict = (
            "the methods' ranks differ" if friedman.p < ALPHA else "no rank differs from chance"
        )
        found.append(
            f"Friedman: {verdict}, p = {p_text(friedman.p)}, "
            f"chi-square {friedman.statistic:.4g} ({among})."
        )
    if (holm := family.holm) is not None:
        tested = [pair for pair in report.pairs if pair.wilcoxon is not None]
        least = min(tested, key=lambda pair: (pair.wilcoxon or 0.0, pair.first, pair.second))
        found.append(
            f"Wilcoxon with Holm's correction: {holm.significant} of "
            f"{counted(holm.count, 'pair')} differ at 5 %; the smallest uncorrected p is "
            f"{p_text(least.wilcoxon)} ({least.first} and {least.second}), the first limit "
            f"0.05/{holm.count} = {p_text(ALPHA / holm.count)}."
        )
    if (nemenyi := family.nemenyi) is not None:
        apart = "; ".join(f"{better} over {worse}" for better, worse in nemenyi.pairs) or "none"
        found.append(
            f"Nemenyi: critical difference {nemenyi.critical_difference:.2f} average ranks at 5 % "
            f"({among}); {counted(len(nemenyi.pairs), 'pair')} differ by more: {apart}."
        )
    for number, tier in enumerate(family.tiers, start=1):
        compared = counted(len(tier.corrected), "comparison")
        over = counted(family.datasets, "data set")
        procedure = f"paired bootstrap over {over}, Holm over {compared}, 5 %"
        if len(tier.methods) > 1:
            others = ", ".join(tier.methods[1:])
            found.append(f"Tier {number}: {tier.best}, and not distinguishable from it {others}")
        else:
            found.append(f"Tier {number}: {tier.best} alone")
        found[-1] += f" ({procedure})." if tier.corrected else ", the last that is left."
    return found


def _of_method(row: MethodSummary, report: Report, numbers: Numbers) -> str:
    plain, grouped = mean_names(report.table)
    runs = f"{counted(row.runs, numbers.noun)}, {span_text(*row.per_cell)} per cell"
    on = f"{counted(row.datasets, 'data set')}, {runs}"
    if row.missing:
        return f"{row.method}: no mean, it lacks {', '.join(row.missing)} ({on})."
    parts = []
    for name, mean in ((plain, row.mean), (grouped, row.group_mean)):
        if mean.value is not None:
            text = f"{name} {numbers.value(mean.value)}"
            if mean.over_datasets is not None:
                text += f", {numbers.interval(mean.over_datasets)} over data sets"
            if mean.over_seeds is not None:
                text += f", {numbers.interval(mean.over_seeds)} over seeds"
            parts.append(text)
    if row.average_rank is not None:
        parts.append(f"average rank {row.average_rank:.2f} of {len(report.family.methods)}")
    if row.places is not None:
        parts.append(f"place {places_text(row.places)} over data sets")
    return f"{row.method}: {'; '.join(parts)} ({on})."


def _runs(pair: Pair, numbers: Numbers) -> str:
    total = counted(sum(pair.runs), numbers.noun)
    each = " and ".join(dict.fromkeys(span_text(*span) for span in pair.per_cell))
    return f"{total}, {each} per cell"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
