"""Loggers besides the run directory's own CSV. A logger that fails never costs the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vpeft_bench.config.sections import LoggerConfig
from vpeft_bench.registry import Registry

WANDB_INIT_SECONDS = 20


class Sink:
    """Where learning curves go; switches itself off, with a warning, at the first failure.

    Args:
        name: for the warning.
        open_log: gives the function that takes ``(values, step)`` and the one that closes.
    """

    def __init__(
        self,
        name: str,
        open_log: Callable[[], tuple[Callable[[Mapping[str, float], int], Any], Callable[[], Any]]],
    ) -> None:
        self.name = name
        self._functions = self._guarded(open_log)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand on the values of one epoch."""
        if self._functions is not None:
            log = self._functions[0]
            if self._guarded(lambda: (log(values, step), True)) is None:
                self._functions = None

    def close(self) -> None:
        """Flush and finish."""
        if self._functions is not None:
            self._guarded(self._functions[1])
            self._functions = None

    def _guarded(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # whatever a logging library raises, the run goes on
            warnings.warn(f"logger {self.name} failed and is off: {error}", stacklevel=2)
            return None


Functions = tuple[Callable[[Mapping[str, float], int], Any], Callable[[], Any]]
"""One takes the values of an epoch and its number, the other closes."""
OpenLog = Callable[[LoggerConfig, Path, str, dict[str, Any]], Functions]
"""From the config of loggers, the run directory, the run's name and the resolved config."""

LOGGERS: Registry[OpenLog] = Registry(
    "logger.also",
    {
        "tensorboard": "vpeft_bench.runs.loggers:open_tensorboard",
        "wandb": "vpeft_bench.runs.loggers:open_wandb",
    },
)


def open_sinks(
    config: LoggerConfig, directory: Path, run_id: str, asked: dict[str, Any]
) -> list[Sink]:
    """The loggers asked for.

    Args:
        config: which.
        directory: the run directory; their files go there.
        run_id: the run's name in Weights & Biases.
        asked: the resolved config.
    """

    def opening(name: str) -> Callable[[], Functions]:
        return lambda: LOGGERS.get(name)(config, directory, run_id, asked)

    return [Sink(name, opening(name)) for name in names(config)]


def names(config: LoggerConfig) -> list[str]:
    """The loggers asked for, each once."""
    switched = {"tensorboard": config.tensorboard, "wandb": config.wandb}
    return list(dict.fromkeys([*(name for name, on in switched.items() if on), *config.also]))


def open_tensorboard(
    config: LoggerConfig, directory: Path, run_id: str, asked: dict[str, Any]
) -> Functions:
    """Event files below the run directory."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / "tensorboard"))

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def open_wandb(
    config: LoggerConfig, directory: Path, run_id: str, asked: dict[str, Any]
) -> Functions:
    """A run of Weights & Biases."""
    import wandb as library

    run = library.init(
        project=config.wandb_project,
        name=run_id,
        dir=str(directory),
        mode=config.wandb_mode.value,
        config=asked,
        settings=library.Settings(init_timeout=WANDB_INIT_SECONDS, silent=True),
    )
    return lambda values, step: run.log(dict(values), step=step), run.finish
