"""Each run and each measurement once, however many files hold it."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from vpeft_bench.cost.card import CostCard
from vpeft_bench.errors import Problem
from vpeft_bench.record import RunRecord

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


def once_each(found: Iterable[tuple[Path, T]], what: str, name: Callable[[T], str]) -> Once[T]:
    """One file per name; of several that differ, the one that finished last.

    Args:
        what: what the files are, for messages.
        name: what two files of the same thing have in common.
    """
    versions: dict[str, dict[str, tuple[Path, T]]] = defaultdict(dict)
    total = 0
    for path, item in sorted(found, key=lambda pair: pair[0]):
        content = json.dumps(dataclasses.asdict(item), sort_keys=True)
        versions[name(item)].setdefault(content, (path, item))
        total += 1
    kept: list[tuple[Path, T]] = []
    older: list[Problem] = []
    for named, contents in versions.items():
        # The content decides between equal times, so that file names never matter.
        *rest, newest = sorted(
            contents,
            key=lambda text: (datetime.fromisoformat(contents[text][1].where.finished), text),
        )
        kept.append(contents[newest])
        newer = f"left out: {contents[newest][0]} is a newer {what} {named}"
        older += [Problem(str(contents[content][0]), newer) for content in rest]
    return Once(kept, older, total - len(kept) - len(older))
