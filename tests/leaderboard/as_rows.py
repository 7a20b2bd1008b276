"""Tables as their readers find them: a row is a dictionary of texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from vpeft_bench.leaderboard import tables
from vpeft_bench.leaderboard.admitted import Admitted, admitted
from vpeft_bench.leaderboard.cards import Joined, cards_of, join
from vpeft_bench.leaderboard.cells import cells_of
from vpeft_bench.leaderboard.column import In
from vpeft_bench.leaderboard.runs import frame_of
from vpeft_bench.leaderboard.scores import Scores
from vpeft_bench.leaderboard.summaries import Summary
from vpeft_bench.leaderboard.summaries import summaries as of_benchmarks
from vpeft_bench.leaderboard.tables import Table
from vpeft_bench.leaderboard.written import to_csv
from vpeft_bench.records.cost_card import CostCard
from vpeft_bench.records.run_record import RunRecord

SCORES = Scores()
Row = dict[str, str]


def gather(*records: RunRecord) -> Admitted:
    found = ((Path(f"{n}/record.json"), record) for n, record in enumerate(records))
    return admitted(frame_of(found))


def gather_cards(*cards: CostCard) -> Admitted:
    return cards_of((Path(f"{number}/card.json"), card) for number, card in enumerate(cards))


def joined(records: Iterable[RunRecord], cards: Iterable[CostCard] = ()) -> Joined:
    runs, found = gather(*records), gather_cards(*cards)
    assert not runs.left_out
    assert not found.left_out
    return join(cells_of(runs.rows), found.rows)


def cells(*records: RunRecord, cards: Iterable[CostCard] = ()) -> pd.DataFrame:
    return joined(records, cards).cells


def only(frame: pd.DataFrame) -> Any:
    """The one row of a frame."""
    (row,) = frame.itertuples()
    return row


def in_file(table: Table) -> list[Row]:
    return list(csv.DictReader(io.StringIO(to_csv(table).decode())))


def in_print(table: Table) -> list[Row]:
    texts = {column.title: column.texts(table.rows) for column in table.of(In.PAGES)}
    return [dict(zip(texts, line, strict=True)) for line in zip(*texts.values(), strict=True)]


def datasets(found: pd.DataFrame, protocol: str = "final", scores: Scores = SCORES) -> Table:
    return tables.dataset_table(found, protocol, scores)


def summaries(found: pd.DataFrame, benchmark: str | None = None) -> list[Summary]:
    return of_benchmarks(found, SCORES, benchmark)
