"""Plug-ins: modules of other packages that add methods, readers and more, each by importing it.

A plug-in is named by ``plugins=[my_package]`` on the command line or in an experiment's file, by
the environment variable ``VPEFT_BENCH_PLUGINS`` (names with commas between them), or by an entry
point in the group ``vpeft_bench.plugins``. A name is that of a module, or the path of a Python file
or of a package's folder. Where a package has a folder ``configs``, its configs are choices, too.

What is named is kept in the variable, which every child process gets; jobs that are sent to
another machine carry it with them (:mod:`vpeft_bench.cli.launch`). Importing this module imports
no plug-in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from vpeft_bench.errors import ConfigError, Problem, nearest

T = TypeVar("T")

VARIABLE = "VPEFT_BENCH_PLUGINS"
ENTRY_POINTS = "vpeft_bench.plugins"
KEY = "plugins"
CONFIGS = "configs"
"""The folder of a package that holds its configs."""

_modules: dict[str, ModuleType] = {}
"""What was imported, by the name it was asked for."""


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


def use(names: Iterable[str]) -> None:
    """Import plug-ins, in this process and in every child that it starts.

    Raises:
        ConfigError: one cannot be imported; says why.
    """
    known = named()
    for name in map(_absolute, names):
        if name not in known:
            _import(name, f"{KEY}=[{name}]")
            known.append(name)
            os.environ[VARIABLE] = ",".join(known)


def load() -> None:
    """Import the plug-ins that the environment and installed packages name.

    Raises:
        ConfigError: one cannot be imported; says why.
    """
    for name in named():
        _import(name, f"{VARIABLE}={name}")
    for entry in _entry_points():
        package = entry.dist.name if entry.dist is not None else "a package"
        _import(entry.module, f"the plug-in {entry.name} of {package}, which is installed")


def named() -> list[str]:
    """Those that the variable names; ``use`` has added what the command line did."""
    return [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]


def loaded() -> list[str]:
    """Those that were imported, by the names they were asked for."""
    return list(_modules)


def config_folders() -> list[Path]:
    """The folders of configs of all plug-ins that have one."""
    load()
    places = [Path(place) / CONFIGS for m in _modules.values() for place in _places(m)]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _places(module: ModuleType) -> list[str]:
    return list(getattr(module, "__path__", ()))


@functools.cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=ENTRY_POINTS))


def _is_path(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _absolute(name: str) -> str:
    """A name that means the same in another folder."""
    return os.path.abspath(os.path.expanduser(name)) if _is_path(name) else name


class Carrying(Generic[T]):
    """A function that imports the plug-ins of this process first, wherever it is unpickled.

    Launchers send it to other processes and machines; whatever else they send is read after it.
    """

    def __init__(self, function: Callable[..., T], names: Sequence[str]) -> None:
        self.function, self.names = function, tuple(names)

    def __call__(self, *arguments: Any) -> T:
        """Call the function."""
        return self.function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a call of what makes it."""
        return _arrived, (self.function, self.names)


def _arrived(function: Callable[..., T], names: Sequence[str]) -> Carrying[T]:
    use(names)
    return Carrying(function, names)


# ---- importing -----------------------------------------------------------------------------------


def _import(name: str, where: str) -> None:
    """Import a module by name, or a file or a package's folder by path."""
    if name in _modules:
        return
    try:
        found = _from_path(Path(name)) if _is_path(name) else importlib.import_module(name)
        if getattr(found, "__file__", None) is None and not _is_path(name):
            place = ", ".join(_places(found))
            raise ConfigError([Problem(where, f"{place} is a folder without __init__.py")])
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            problem = Problem(where, "there is no such module", _instead(name))
        else:
            problem = Problem(where, f"cannot be imported: {error}{_line(error)}")
        raise ConfigError([problem]) from error
    except ConfigError:  # of what it imports in its turn
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises is told as it is
        said = f"{type(error).__name__}: {error}{_line(error)}"
        raise ConfigError([Problem(where, f"cannot be imported: {said}")]) from error
    _modules[name] = found


def _line(error: BaseException) -> str:
    """The line of a plug-in at which it happened, if it is one of its own."""
    here = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame)]
    return f" ({here[-1].filename}, line {here[-1].lineno})" if here else ""


def _is_foreign(frame: traceback.FrameSummary) -> bool:
    package = str(Path(__file__).parent) + os.sep
    return not frame.filename.startswith((package, "<"))


def _instead(name: str) -> str:
    """What to type where a name is that of no module."""
    announced = [entry.module for entry in _entry_points()]
    modules = [module.name for module in pkgutil.iter_modules()]
    fix = []
    if Path(name).is_dir() or Path(f"{name}.py").is_file():
        path = f"./{name}" if Path(name).is_dir() else f"{name}.py"
        fix.append(f"it lies in this folder: {KEY}=[{path}]")
    elif close := nearest(name, [*announced, *modules]):
        fix.append(f"did you mean {KEY}=[{close}]")
    fix.append("install the package it is in, put its folder on PYTHONPATH, or name it by its path")
    return "\n".join(fix)


def _from_path(path: Path) -> ModuleType:
    """Import a file or a package's folder under its own name; other processes find it there."""
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        folder = f"{path} is a folder without __init__.py" if path.is_dir() else ""
        raise FileNotFoundError(folder or f"there is no file {path}")
    name = path.name.removesuffix(".py")
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    if not name.isidentifier():
        raise ImportError(f"{name} is no name of a module; rename it: letters, digits and _")
    if known is not None or _elsewhere(name, file):
        raise ImportError(f"a module is called {name} already; give it another name")
    places = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _elsewhere(name: str, file: Path) -> bool:
    """Whether the name alone means another module."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin not in (None, str(file))
