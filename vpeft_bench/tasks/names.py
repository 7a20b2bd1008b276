"""The kinds of tasks by name: what ``task=NAME`` may be.

A package adds its own by ``TASKS.add("my_task", "my_package.my_task:KIND")``. Importing this module
does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft_bench.registry import Registry

if TYPE_CHECKING:
    from vpeft_bench.config.schema import RunConfig
    from vpeft_bench.tasks.kind import TaskKind

_FOLDERS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/kind.py"))

TASKS: Registry[TaskKind] = Registry(
    "task", {name: f"vpeft_bench.tasks.{name}.kind:KIND" for name in _FOLDERS}
)


def every_kind() -> list[TaskKind]:
    """All of them."""
    return [TASKS.get(name) for name in TASKS.names()]


def kind_of(config: RunConfig) -> TaskKind:
    """The kind of task that a run is of.

    Raises:
        ConfigError: there is none of its name.
    """
    return TASKS.get(str(config.task["name"]))


def with_defaults(asked: dict[str, Any]) -> dict[str, Any]:
    """Name and options of a task, those that are not named at their defaults, numbers of one type.

    What is wrong stays as it is: :meth:`vpeft_bench.tasks.kind.TaskKind.option_problems` tells.
    """
    name = asked.get("name")
    if not isinstance(name, str) or name not in TASKS:
        return asked
    return {"name": name, **TASKS.get(name).completed(asked)}
