"""Things found by name: each kind has a registry, and anybody's package may add to it.

What is here is named as ``module:object`` and imported when it is asked for. A plug-in
(:mod:`vpeft_bench.plugins`) registers its own when it is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from vpeft_bench import plugins
from vpeft_bench.errors import ConfigError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by name.

    Args:
        where: the key that names one, as typed on the command line.
        targets: ``module:object`` by name.
    """

    def __init__(self, where: str, targets: Mapping[str, str]) -> None:
        self.where = where
        self._targets = dict(targets)
        self._found: dict[str, T] = {}

    def names(self) -> list[str]:
        """All names, sorted, those of plug-ins included."""
        plugins.load()
        return sorted({*self._targets, *self._found})

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make an object known under ``name``.

        Raises:
            ValueError: another object has the name.
        """

        def add(thing: T) -> T:
            known = self._found.get(name, self._targets.get(name))
            if known is not None and known is not thing:
                raise ValueError(f"two have the name {self.where}={name}: {known} and {thing}")
            self._found[name] = thing
            return thing

        return add

    def get(self, name: str) -> T:
        """The object called ``name``.

        Raises:
            ConfigError: there is none, with the nearest; or a plug-in cannot be imported.
        """
        if name not in self._found:
            plugins.load()
        if name not in self._found:
            if name not in self._targets:
                raise ConfigError([unknown_name(self.where, name, self.names())])
            module, _, thing = self._targets[name].partition(":")
            self._found[name] = getattr(importlib.import_module(module), thing)
        return self._found[name]
