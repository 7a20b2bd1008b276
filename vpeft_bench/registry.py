"""Things found by name: each kind has a registry, and anybody's package may add to it.

What is named as ``module:object`` is imported when it is asked for, and not before. A plug-in
(:mod:`vpeft_bench.plugins`) adds its own when it is imported: the object itself, or where it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from vpeft_bench import plugins
from vpeft_bench.errors import ConfigError, Problem, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by name.

    Args:
        where: the key that names one, as typed on the command line.
        things: by name, in their order: objects, or ``module:object`` where they are.
        brought: gives what things of another registry bring along; they come first.
    """

    def __init__(
        self,
        where: str,
        things: Mapping[str, T | str] | None = None,
        brought: Callable[[], Mapping[str, T]] = dict,
    ) -> None:
        self.where = where
        self._things: dict[str, T | str] = dict(things or {})
        self._brought = brought

    def names(self) -> list[str]:
        """All names in the order in which they were added, those of plug-ins included."""
        plugins.load()
        known = self._things
        if new := {name: thing for name, thing in self._brought().items() if name not in known}:
            ours = dict(known)
            known.clear()
            known.update({**new, **ours})
        return list(known)

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self.names()

    def add(self, name: str, thing: T | str) -> None:
        """Make an object, or ``module:object`` where it is, known under ``name``.

        Raises:
            ValueError: another object has the name.
        """
        known = self._things.get(name, thing)
        if known is not thing and _place(known) != _place(thing):
            raise ValueError(f"two have the name {self.where}={name}: {known} and {thing}")
        self._things[name] = thing

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make an object known under ``name``; see :meth:`add`."""

        def add(thing: T) -> T:
            self.add(name, thing)
            return thing

        return add

    def get(self, name: str) -> T:
        """The object called ``name``.

        Raises:
            ConfigError: there is none, with the nearest; or a plug-in cannot be imported.
        """
        if name not in self:
            raise ConfigError([self.unknown(name)])
        thing = self._things[name]
        if isinstance(thing, str):
            thing = self._things[name] = found(thing)
        return thing

    def unknown(self, name: str, among: Collection[str] | None = None) -> Problem:
        """The problem that nothing is called ``name``, with the nearest of those that are."""
        problem = unknown_name(self.where, name, self.names() if among is None else among)
        return with_plugins(problem)


def found(target: str) -> Any:
    """The object at ``module:object``."""
    module, _, path = target.partition(":")
    return getattr(importlib.import_module(module), path)


def with_plugins(problem: Problem) -> Problem:
    """``problem``, that there is no such name, and where others may come from."""
    loaded = ", ".join(plugins.loaded()) or "none"
    more = f"of other packages: plugins=[PACKAGE] (imported: {loaded})"
    return replace(problem, fix=f"{problem.fix}\n{more}".strip())


def _place(thing: object) -> object:
    """Where an object is defined; two imports of one file define the same."""
    if isinstance(thing, str):
        return thing
    name = getattr(thing, "__qualname__", None)
    return thing if name is None else f"{getattr(thing, '__module__', '')}:{name}"
