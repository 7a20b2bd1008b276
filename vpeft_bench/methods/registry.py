"""Finding methods by name: every module of this package that defines one is found by existing.

Those of other packages are found where a plug-in adds them (:mod:`vpeft_bench.plugins`).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vpeft_bench.errors import MethodOptionError, Problem
from vpeft_bench.methods.base import Method, default_options
from vpeft_bench.methods.names import METHODS
from vpeft_bench.options import typed, wrong_options


@dataclass(frozen=True)
class MethodSource:
    """Methods of another library, found under a prefix of their names.

    Attributes:
        prefix: ends in a slash, ``hf/``.
        names: gives all names, with the prefix; does not import the library.
        method_class: gives the class for a name without the prefix.
    """

    prefix: str
    names: Callable[[], list[str]]
    method_class: Callable[[str], type[Method]]


_SOURCES: dict[str, MethodSource] = {}
_OWN = "vpeft_bench."

M = TypeVar("M", bound=type[Method])


def register(method_class: M) -> M:
    """Class decorator: make a method known under its ``name``."""
    METHODS.add(method_class.name, method_class)
    return method_class


def register_source(source: MethodSource) -> None:
    """Make the methods of another library known under their prefix."""
    _SOURCES[source.prefix] = source


@functools.cache
def _import_all() -> None:
    import vpeft_bench.methods as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    importlib.import_module("vpeft_bench.methods.hf.bridge")  # a package: no method by itself


def list_methods(prefix: str = "") -> list[str]:
    """Names of every method, sorted.

    Args:
        prefix: of a library that methods are taken from (``hf/``); by default the methods of this
            package and of all plug-ins.
    """
    _import_all()
    return _SOURCES[prefix].names() if prefix else sorted(METHODS.names())


def own_methods() -> list[str]:
    """Names of the methods of this package, sorted."""
    return [n for n in list_methods() if METHODS.get(n).__module__.startswith(_OWN)]


def method_class(name: str) -> type[Method]:
    """The class of the method called ``name``.

    Raises:
        MethodOptionError: there is none; names the nearest.
        MissingExtraError: it is one of a library that is not installed.
        ConfigError: a plug-in cannot be imported.
    """
    _import_all()
    prefix, slash, rest = name.rpartition("/")
    if (source := _SOURCES.get(prefix + slash)) is not None:
        return source.method_class(rest)
    if name not in METHODS.names():
        raise MethodOptionError([METHODS.unknown(name)])
    found = METHODS.get(name)
    if found.name != name:
        what = f"{found.__module__}.{found.__qualname__} calls itself {found.name}"
        fix = "add it to METHODS under its own name"
        raise MethodOptionError([Problem(f"method={name}", what, fix)])
    return found


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method ``name`` with its hyper-parameters.

    Raises:
        MethodOptionError: unknown method or option, wrong type, value out of range, options that
            make no sense together; all at once.
    """
    return _built(method_class(name), options)


def checked(method: Method) -> Method:
    """``method``, its hyper-parameters checked as those of one that is built by name.

    Raises:
        MethodOptionError: all that is wrong with them.
    """
    return _built(type(method), method.options())


def _built(found: type[Method], options: Mapping[str, Any]) -> Method:
    if problems := _option_problems(found, options):
        raise MethodOptionError(problems)
    method = found(**typed(found, options))
    if problems := list(method.conflicts()):
        raise MethodOptionError(problems)
    return method


def option_problems(name: str, options: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with ``options`` of the method ``name``."""
    return _option_problems(method_class(name), options)


def _option_problems(found: type[Method], options: Mapping[str, Any]) -> list[Problem]:
    return wrong_options(found, options, "method", found.name, default_options(found))
