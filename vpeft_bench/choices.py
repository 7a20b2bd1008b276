"""The choices of each config group."""

from __future__ import annotations

from pathlib import Path

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
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir():
        return checkout / "configs"
    return package / "configs"


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
