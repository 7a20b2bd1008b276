"""Statistics of a long table ``method, data, seed, value``: what it says, and what it does not.

:func:`analyse` takes a pandas frame and gives typed results, one for each benchmark in it. Nothing
here knows where the table comes from.
"""

from vpeft_bench.statistics.bootstrap import Bootstrap, Interval
from vpeft_bench.statistics.family import Family, Friedman, Holm, Nemenyi, Tier
from vpeft_bench.statistics.pairs import Pair, compare
from vpeft_bench.statistics.report import Report, analyse
from vpeft_bench.statistics.summary import Mean, MethodSummary, summarise
from vpeft_bench.statistics.table import SETTINGS, Table, tables_of

__all__ = [
    "SETTINGS",
    "Bootstrap",
    "Family",
    "Friedman",
    "Holm",
    "Interval",
    "Mean",
    "MethodSummary",
    "Nemenyi",
    "Pair",
    "Report",
    "Table",
    "Tier",
    "analyse",
    "compare",
    "summarise",
    "tables_of",
]
