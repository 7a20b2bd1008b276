"""The folders of configs, and the choices of each group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft_bench import plugins

GROUPS = (
    "method",
    "data",
    "backbone",
    "head",
    "task",
    "protocol",
    "hardware",
    "logger",
    "variant",
    "experiment",
)


def config_dir() -> Path:
    """The absolute path of ``configs/``: beside ``pyproject.toml`` in a checkout, else packaged."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir():
        return checkout / "configs"
    return package / "configs"


_own: list[Path] = []


def use_folders(folders: Iterable[str | Path]) -> None:
    """Take over the folders of configs that this command line names (``--config-dir``)."""
    _own[:] = [Path(folder).absolute() for folder in folders]


def own_folders() -> list[Path]:
    """The folders of configs that this command line names."""
    return list(_own)


def config_folders() -> list[Path]:
    """``configs/``, the folders of configs of all plug-ins, and those of this command line."""
    return list(dict.fromkeys([config_dir(), *plugins.config_folders(), *_own]))


def every_choice() -> dict[str, list[str]]:
    """For each group the names of all its choices, those of plug-ins included.

    A method needs no file: its options are those of its class.
    """
    from vpeft_bench.catalogue import facts

    found = {"method": {*facts.names()}}
    for folder in config_folders():
        for group, names in choices_on_disk(folder).items():
            found.setdefault(group, set()).update(names)
    return {group: sorted(found[group]) for group in GROUPS if group in found}


def choices_on_disk(directory: Path | None = None) -> dict[str, list[str]]:
    """For each group the names of its files, in sub-folders too; ``_base`` files are no choices."""
    root = directory or config_dir()
    found = {}
    for group in GROUPS:
        paths = (path.relative_to(root / group) for path in (root / group).rglob("*.yaml"))
        names = [str(path.with_suffix("")) for path in paths if not path.name.startswith("_")]
        if names:
            found[group] = sorted(names)
    return found
