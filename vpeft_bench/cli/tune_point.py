"""One point of a search: whether it was run before, and running it."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from vpeft_bench.cli.launch import answer_of, find_run
from vpeft_bench.cli.tune_tables import settings_text
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import ConfigError
from vpeft_bench.records.run_record import RECORD_NAME
from vpeft_bench.runs import validation
from vpeft_bench.runs.rounds import Standing
from vpeft_bench.runs.sweep import Answer
from vpeft_bench.runs.validation import Seen
from vpeft_bench.tuning.choice import DIVERGED, REFUSED
from vpeft_bench.tuning.space import at_point, space_of, value_at


def ask(config: RunConfig, console: Console) -> Answer:
    """Run one point of a search, unless its record exists or says that it diverged.

    Raises:
        ConfigError: with everything wrong with the search itself.
        VpeftBenchError: it failed in a way that says nothing of the point.
    """
    seen = Seen()
    if found := list(validation.problems(config, seen)):
        raise ConfigError(found)
    number = config.tune.point or 0
    point = at_point(config, number)
    if (refused := _refused(point, seen)) is not None:
        return refused
    settings = {key: value_at(point, key) for key in space_of(config).keys}
    name, data = config.method["name"], config.data.name
    count = f"{number + 1} of {config.tune.budget}"
    told = f"{name} on {data}: point {number} ({count}): {settings_text(settings)}"
    console.print(told, soft_wrap=True)
    from vpeft_bench.runs.run import Result, run

    outcome = run(point, console, settled=(DIVERGED,))
    record, result = outcome.record, outcome.result.value
    if outcome.result is Result.FAILED and record is not None:
        result = record.outcome
    answer = answer_of(point, result, outcome.reason, record)
    well, file = outcome.result is not Result.BUSY, outcome.directory / RECORD_NAME
    return replace(answer, went_well=well, file=file)


def find(config: RunConfig, seen: Seen, elsewhere: bool = False) -> Standing:
    """Whether a point was run before, see :func:`vpeft_bench.cli.launch.find_run`."""
    point = at_point(config, config.tune.point or 0)
    if (refused := _refused(point, seen, elsewhere)) is not None:
        return Standing(answer=refused)
    return find_run(point, seen, elsewhere, settled=(DIVERGED,))


def _refused(point: RunConfig, seen: Seen, elsewhere: bool = False) -> Answer | None:
    """That a point asks for what cannot be; None for one that can be run."""
    wrong = list(validation.problems(point, seen, elsewhere))
    reason = "; ".join(f"{p.where}: {p.what}" for p in wrong)
    return Answer(REFUSED, True, reason) if wrong else None
