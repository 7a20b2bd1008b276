"""The sentences that the statistics support, each with its procedure and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from vpeft_bench.formats import counted
from vpeft_bench.statistics.bootstrap import FEWEST_DATASETS
from vpeft_bench.statistics.family import ALPHA
from vpeft_bench.statistics.pairs import Pair
from vpeft_bench.statistics.report import Report
from vpeft_bench.statistics.summary import MethodSummary
from vpeft_bench.statistics.wording import (
    Numbers,
    mean_names,
    noun,
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
        Section(
            "What was read",
            (f"{rests_on(report.table)}.", *(_sentence(text, report) for text in remarks(report))),
        ),
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
        statements = counted(len(report.pairs), "such statement")
        chance = f"{len(report.pairs) * ALPHA:.2g} of {statements}"
        about = (
            f"Each pair by itself: no other method changes what is said of it. Intervals: {kind}. "
            f"Told apart means p below {ALPHA:g} by the bootstrap over data sets, uncorrected; "
            f"with fewer than {FEWEST_DATASETS}, an interval over seeds without 0. If no two "
            f"methods differed, about {chance} would tell two apart by chance: "
            "what holds for all of them together is said above."
        )
        ordered = sorted(report.pairs, key=lambda pair: (pair.first, pair.second))
        sentences = tuple(of_pair(pair, report) for pair in ordered)
        found.append(Section("Each pair", sentences, about))
    return found


def kind_of_intervals(report: Report) -> str:
    """How every interval was made."""
    bootstrap = report.bootstrap
    how = f"{bootstrap.resamples:,} resamples from seed {bootstrap.seed}"
    return f"{bootstrap.confidence * 100:g} % percentile bootstrap, {how}"


def of_pair(pair: Pair, report: Report) -> str:
    """What the table says of two methods; nothing in it depends on a third."""
    if pair.difference is None:
        return f"{pair.first} and {pair.second} have no data set in common: nothing can be said."
    numbers = Numbers(report.table, pair.names)
    percent = f"{report.bootstrap.confidence * 100:g} %"
    facts = [f"mean difference {numbers.difference(pair.difference)}{numbers.unit}"]
    if pair.over_datasets is not None:
        interval = numbers.interval(pair.over_datasets)
        p = p_text(pair.bootstrap_p)
        facts.append(f"{percent} paired bootstrap over data sets {interval}, p = {p}")
    if pair.over_seeds is not None:
        facts.append(f"{percent} bootstrap over seeds {numbers.interval(pair.over_seeds)}")
    if pair.wilcoxon is not None:
        facts.append(f"Wilcoxon signed-rank p = {p_text(pair.wilcoxon)}, uncorrected")
    facts.append(f"better on {pair.wins}, equal on {pair.ties}, worse on {pair.losses}")
    on = f"{counted(pair.datasets, 'common data set')}, {_runs(pair, numbers)}"
    return f"{_verdict(pair)}: {'; '.join(facts)} ({on})."


def _verdict(pair: Pair) -> str:
    """By the bootstrap over data sets where there are enough of them, else over seeds."""
    both = f"{pair.first} and {pair.second}"
    if pair.bootstrap_p is not None:
        decided, where = pair.bootstrap_p < ALPHA, "on average"
    elif pair.over_seeds is not None:
        decided, where = pair.over_seeds.excludes_zero, "on these data sets"
    else:
        return f"{both} cannot be told apart, with so few data sets and runs"
    if decided:
        return f"{pair.first} is better than {pair.second} {where}"
    return f"{both} are not told apart {where}"


def of_all(report: Report) -> list[str]:
    """What the table says of all methods together."""
    family, found = report.family, []
    runs = sum(row.runs for row in report.summaries if not row.missing)
    over = counted(family.datasets, "data set")
    among = f"{counted(len(family.methods), 'method')}, {over}, {counted(runs, noun(report.table))}"
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
        common = [pair.datasets for pair in tested]
        on = span_text(min(common), max(common))
        of = f"{counted(holm.count, 'pair')}, each on {on} common data sets,"
        found.append(
            f"Wilcoxon with Holm's correction: {holm.significant} of {of} differ at 5 %; "
            f"the smallest uncorrected p is {p_text(least.wilcoxon)} ({least.first} and "
            f"{least.second}), the first limit 0.05/{holm.count} = {p_text(ALPHA / holm.count)}."
        )
    if (nemenyi := family.nemenyi) is not None:
        apart = "; ".join(f"{better} over {worse}" for better, worse in nemenyi.pairs) or "none"
        found.append(
            f"Nemenyi: critical difference {nemenyi.critical_difference:.2f} average ranks at 5 % "
            f"({among}); {counted(len(nemenyi.pairs), 'pair')} differ by more: {apart}."
        )
    for number, tier in enumerate(family.tiers, start=1):
        compared = counted(len(tier.corrected), "comparison")
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
                text += f", over data sets {numbers.interval(mean.over_datasets)}"
            if mean.over_seeds is not None:
                text += f", over seeds {numbers.interval(mean.over_seeds)}"
            parts.append(text)
    if row.average_rank is not None:
        parts.append(f"average rank {row.average_rank:.2f} of {len(report.family.methods)}")
    if row.places is not None:
        parts.append(f"places {places_text(row.places)}")
    return f"{row.method}: {'; '.join(parts)} ({on})."


def _runs(pair: Pair, numbers: Numbers) -> str:
    total = counted(sum(pair.runs), numbers.noun)
    each = " and ".join(dict.fromkeys(span_text(*span) for span in pair.per_cell))
    return f"{total}, {each} per cell"


def _sentence(text: str, report: Report) -> str:
    """With a capital at its head, unless that is the name of a method."""
    named = text.startswith(report.table.methods)
    return f"{text if named else text[0].upper() + text[1:]}."
