"""One search: a method on a data set, its points, and what is known of them from their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vpeft_bench.config.identity import scientific
from vpeft_bench.config.schema import RunConfig, plain
from vpeft_bench.records import run_record as records
from vpeft_bench.runs.sweep import DONE, NOT_RUN, SKIPPED, Note
from vpeft_bench.tuning.choice import GIVEN_UP, TRIED, Choice, Point, choose
from vpeft_bench.tuning.space import (
    SOBOL,
    TPE,
    Coordinates,
    Settings,
    Space,
    defaults_of,
    space_of,
)
from vpeft_bench.tuning.tpe import START, following


@dataclass(frozen=True)
class Search:
    """A search as it is asked for: the config of its point 0."""

    config: RunConfig

    @cached_property
    def space(self) -> Space:
        """What is searched."""
        return space_of(self.config)

    @cached_property
    def defaults(self) -> Settings:
        """The settings of point 0."""
        return defaults_of(self.config, self.space)

    @property
    def name(self) -> str:
        """Of the variant that comes out of it."""
        tune = self.config.tune
        usual = f"{'tpe' if tune.sampler == TPE else 'tuned'}@{tune.budget}"
        return f"{self.config.method['name']}/{tune.name or usual}"

    @cached_property
    def id(self) -> str:
        """Ten hex digits: what is the same at all of its points, and the space."""
        asked = [scientific(plain(self.config)), self.config.seed, self.space.hash]
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def coordinates(self, number: int, before: Sequence[Point] = ()) -> Coordinates | None:
        """Where a point lies; None where it follows from others that are not tried yet."""
        space = self.space
        if space.sampler == SOBOL or number < START:
            return space.coordinates(number, self.defaults)
        if len(before) < number or any(point.result not in TRIED for point in before):
            return None
        used = [dimension is not None for dimension in space.dimensions]
        return following(used, [(point.at, point.gain) for point in before])

    def settings(self, number: int, at: Coordinates | None) -> Settings:
        """Of a point that lies there; none where that is not known yet."""
        if number == 0 or at is None:
            return self.defaults if number == 0 else {}
        return self.space.at(at, self.defaults)

    def point(self, number: int, note: Note | None, before: Sequence[Point] = ()) -> Point:
        """What is known of a point from the note of its job, and from the record it names.

        Raises:
            RecordError: the record cannot be read.
        """
        at = self.coordinates(number, before)
        settings = self.settings(number, at)
        distance = self.space.distance(settings, self.defaults) if settings else 0.0
        if note is None:
            return Point(number, settings, distance, NOT_RUN, at=at or ())
        path = None if note.file is None else Path(note.file)
        record = records.read(path) if path is not None and path.is_file() else None
        reused = note.result == SKIPPED
        ran = record is not None and note.result in (DONE, SKIPPED)
        result = record.outcome if record is not None and ran else note.result
        reason = record.error if record is not None and ran else note.reason
        return Point(number, settings, distance, result, reason or "", reused, record, at or ())


@dataclass(frozen=True)
class Outcome:
    """A search and its points."""

    search: Search
    points: tuple[Point, ...]

    @classmethod
    def of(cls, search: Search, notes: Mapping[int, Note], given_up: Mapping[int, str]) -> Outcome:
        """From the notes of the jobs that ran, by number of the point.

        Args:
            search: whose points they are.
            notes: of the jobs.
            given_up: of points that are not run, and why.
        """
        points: list[Point] = []
        for number in range(search.config.tune.budget):
            point = search.point(number, notes.get(number), points)
            if number in given_up and point.result == NOT_RUN:
                point = replace(point, result=GIVEN_UP, reason=given_up[number])
            points.append(point)
        return cls(search, tuple(points))

    @property
    def missing(self) -> list[Point]:
        """Points that are not tried yet."""
        return [point for point in self.points if point.result not in (*TRIED, GIVEN_UP)]

    @property
    def given_up(self) -> list[Point]:
        """Points that were not run, since they are hopeless."""
        return [point for point in self.points if point.result == GIVEN_UP]

    @property
    def failed(self) -> list[Point]:
        """Points that were tried and have no score."""
        tried = [point for point in self.points if point.result in TRIED]
        return [point for point in tried if point.metrics is None]

    @property
    def seconds(self) -> float:
        """What all points cost."""
        return sum(point.seconds for point in self.points)

    @cached_property
    def choice(self) -> Choice | None:
        """What is taken; None before all points are tried, or where none has a score."""
        return None if self.missing else choose(self.points)
