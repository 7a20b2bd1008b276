"""Plug-ins: modules of other packages that add methods, readers and more, each by importing it.

A plug-in is named by ``plugins=[my_package]`` on the command line, by the environment variable
``VPEFT_BENCH_PLUGINS`` (names with commas between them), or by an entry point in the group
``vpeft_bench.plugins``. A name is that of a module, or the path of a Python file. What is named on
the command line reaches every child process through the variable.

Importing this module imports no plug-in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vpeft_bench.errors import ConfigError, Problem

VARIABLE = "VPEFT_BENCH_PLUGINS"
ENTRY_POINTS = "vpeft_bench.plugins"
KEY = "plugins"
_INSTALL = "install the package it is in, or put its folder on PYTHONPATH"


def typed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The plug-ins that a command line names, and what else is on it."""
    names: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.lstrip("+") == KEY:
            parts = value.strip().removeprefix("[").removesuffix("]").split(",")
            names += [name for part in parts if (name := part.strip().strip("'\""))]
        else:
            rest.append(argument)
    return names, rest


def use(names: Sequence[str]) -> None:
    """Import plug-ins, in this process and in every child that it starts.

    Raises:
        ConfigError: one cannot be imported; says why.
    """
    known = named()
    new = [_absolute(name) for name in names if _absolute(name) not in known]
    for name in new:
        _import(name, f"{KEY}={name}")
    if new:
        os.environ[VARIABLE] = ",".join([*known, *new])


def load() -> bool:
    """Import the plug-ins that the environment and installed packages name; whether there are any.

    Raises:
        ConfigError: one cannot be imported; says why.
    """
    names = named()
    for name in names:
        _import(name, f"{VARIABLE}={name}")
    return bool(names) | _load_entry_points()


@functools.cache
def _load_entry_points() -> bool:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    for entry in found:
        package = entry.dist.name if entry.dist is not None else "a package"
        _import(entry.module, f"the plug-in {entry.name} of {package}")
    return bool(found)


def named() -> list[str]:
    """Those that the variable names; ``use`` has added what the command line did."""
    return [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]


def _absolute(name: str) -> str:
    """A name that means the same in another folder."""
    return os.path.abspath(os.path.expanduser(name)) if name.endswith(".py") else name


def _import(name: str, where: str) -> None:
    """Import a module by name, or a file by path."""
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        what = "there is no such module" if own else f"cannot be imported: {error}"
        raise ConfigError([Problem(where, what, _INSTALL if own else "")]) from error
    except ConfigError:
        raise
    except Exception as error:  # whatever a stranger's code raises is told as what it is
        what = f"cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError([Problem(where, what)]) from error


def _import_file(path: Path) -> None:
    """Import a file once, under its own name; other processes find it by the same path."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if loaded is not None or importlib.util.find_spec(path.stem) is not None:
        raise ImportError(f"a module is called {path.stem} already; give the file another name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
