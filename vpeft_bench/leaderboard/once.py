"""Each run and each measurement once, however many files hold it."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from vpeft_bench.errors import Problem
from vpeft_bench.records.cost_card import CostCard
from vpeft_bench.records.run_record import RunRecord

T = TypeVar("T", RunRecord, CostCard)


class Once(NamedTuple, Generic[T]):
    """Files sorted out.

    Attributes:
        kept: one file of each name.
        older: those that were replaced by a newer one.
        copies: number of files left out because another holds exactly the same.
    """

    kept: list[tuple[Path, T]]
    older: list[Problem]
    copies: int


def once_each(
    found: Iterable[tuple[Path, T]],
    what: str,
    name: Callable[[T], str],
    title: Callable[[T], str],
) -> Once[T]:
    """One file per name; of several that differ, the one that finished last.

    A file from the future, as a wrong clock or an edit makes it, is newer than none.

    Args:
        what: what the files are, for messages.
        name: what two files of the same thing have in common.
        title: what it is called in messages.
    """
    tomorrow = datetime.now(UTC) + timedelta(days=1)  # clocks of one cluster differ by less
    versions: dict[str, dict[str, tuple[Path, T]]] = defaultdict(dict)
    total = 0
    for path, item in sorted(found, key=lambda pair: pair[0]):
        content = json.dumps(dataclasses.asdict(item), sort_keys=True)
        versions[name(item)].setdefault(content, (path, item))
        total += 1
    kept: list[tuple[Path, T]] = []
    older: list[Problem] = []
    for contents in versions.values():
        # The content decides between equal times, so that file names never matter.
        finished = {
            text: datetime.fromisoformat(item.where.finished)
            for text, (_, item) in contents.items()
        }
        *rest, newest = sorted(
            contents, key=lambda text: (finished[text] < tomorrow, finished[text], text)
        )
        kept.append(contents[newest])
        path, item = contents[newest]
        for content in rest:
            ahead = finished[content] >= tomorrow
            why = f"its date {finished[content]:%Y-%m-%d} is still to come; " if ahead else ""
            newer = finished[content] < finished[newest] and not ahead
            than = f"{path} is {'a newer' if newer else 'another'} {what} {title(item)}"
            older.append(Problem(str(contents[content][0]), f"left out: {why}{than}"))
    return Once(kept, older, total - len(kept) - len(older))
