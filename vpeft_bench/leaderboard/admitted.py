"""Which records and cards are shown: those that are what they say, each once.

The hash of a run is computed again from what was asked, the data and the weights. A record that was
edited, or copied from one run to another, is not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd

from vpeft_bench.errors import Problem

UNKNOWN = "unknown"


class Admitted(NamedTuple):
    """Rows of a frame, each thing once.

    Attributes:
        rows: those that are shown.
        left_out: those that are not, and why.
        copies: number of rows left out because another holds exactly the same.
    """

    rows: pd.DataFrame
    left_out: list[Problem]
    copies: int


def admitted(runs: pd.DataFrame) -> Admitted:
    """The runs of a frame that are shown."""
    runs, problems = _verified(runs)
    lost = runs[runs["unplaceable"].notna()]
    problems += _left_out(lost, lost["unplaceable"])
    kept, older, copies = once_each(
        _without(runs, lost), "record of run", ["config_hash", "seed"], "run_id"
    )
    return Admitted(_with_weights(kept), sorted([*problems, *older], key=str), copies)


def once_each(found: pd.DataFrame, what: str, name: Sequence[str], title: str) -> Admitted:
    """One row per name; of several that differ, the one that finished last.

    A file from the future, as a wrong clock or an edit makes it, is newer than none.

    Args:
        found: with ``file``, ``content`` and ``finished``, in the order of the files.
        what: what the files are, for messages.
        name: the columns that two files of the same thing have in common.
        title: the column of what it is called in messages.
    """
    names = list(name)
    copies = found[found.duplicated([*names, "content"])]
    found = _without(found, copies)
    several = found[found.duplicated(names, keep=False)]
    if several.empty:
        return Admitted(found, [], len(copies))
    tomorrow = datetime.now(UTC) + timedelta(days=1)  # clocks of one cluster differ by less
    # The content decides between equal times, so that file names never matter.
    several = several.assign(sound=several["finished"] < tomorrow)
    several = several.sort_values(["sound", "finished", "content"])
    newest = several.drop_duplicates(names, keep="last")
    older = several.drop(newest.index).merge(newest, on=names, suffixes=("", "_newest"))
    called = title if title in names else f"{title}_newest"
    problems = []
    for row in older.to_dict("records"):
        why = "" if row["sound"] else f"its date {row['finished']:%Y-%m-%d} is still to come; "
        newer = row["finished"] < row["finished_newest"] and row["sound"]
        kind = f"{'a newer' if newer else 'another'} {what} {row[called]}"
        than = f"left out: {why}{row['file_newest']} is {kind}"
        problems.append(Problem(_place(row["file"], row.get("run_id")), than))
    return Admitted(_without(found, several.drop(newest.index)), problems, len(copies))


def _verified(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """The records whose hash is that of what was asked, and why the others are not shown.

    Records from before schema 5 do not say what of weights in a user's file entered the hash, and
    runs that ended before their weights were loaded do not know it. Such a record is believed
    unless another one has its hash and was asked for something else.
    """
    true, said = runs["true_hash"], runs["config_hash"]
    as_said = np.append(said.cat.categories.get_indexer(true.cat.categories), -2)
    told = true.notna()
    wrong = runs[told & (as_said[true.cat.codes] != said.cat.codes)]
    problems = _left_out(
        wrong,
        (
            f"config_hash is {row.config_hash}, but what was asked has {row.true_hash}"
            for row in wrong[["config_hash", "true_hash"]].itertuples()
        ),
    )
    kept = _without(runs, wrong)
    untold = kept[kept["true_hash"].isna()]
    if untold.empty:
        return kept, problems
    alike = kept[kept["config_hash"].isin(untold["config_hash"])]
    proven = alike[alike["true_hash"].notna()]
    asked = alike.groupby("config_hash", observed=True)["claim"].nunique()
    alone = untold["config_hash"].map(asked).astype(int) == 1
    trusted = untold["config_hash"].isin(proven["config_hash"]) & untold["claim"].isin(
        proven["claim"]
    )
    doubtful = untold[~alone & ~trusted]
    problems += _left_out(
        doubtful,
        (
            f"records of config_hash {name} were asked for different things"
            for name in doubtful["config_hash"]
        ),
    )
    return _without(kept, doubtful), problems


def _without(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """A frame without some of its rows; it is large, and mostly none are left out."""
    return frame if rows.empty else frame.drop(rows.index)


def _left_out(rows: pd.DataFrame, reasons: Iterable[str]) -> list[Problem]:
    return [
        Problem(_place(file, name), f"left out: {why}")
        for file, name, why in zip(rows["file"], rows["run_id"], reasons, strict=True)
    ]


def _place(file: str, name: str | None) -> str:
    """Where a row is from: a file of its own, or one of many in a consolidated one."""
    return f"{file}: {name}" if file.endswith(".parquet") else file


def _with_weights(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that died before they loaded their weights belong to those that asked for the same."""
    columns = ["weights", "weights_fingerprint"]
    died = runs["weights"].isna()
    if not died.any():
        return runs
    known = runs.loc[~died, ["backbone_asked", *columns]].drop_duplicates()
    known = known.drop_duplicates("backbone_asked", keep=False).set_index("backbone_asked")
    texts = runs[columns].astype("object")
    for name, absent in zip(columns, (UNKNOWN, ""), strict=True):
        of = known[name].to_dict()
        texts.loc[died, name] = [of.get(key, absent) for key in runs.loc[died, "backbone_asked"]]
    return runs.assign(**{name: texts[name].astype("category") for name in columns})
