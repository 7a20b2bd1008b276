"""Every problem of a command line's overrides, found before Hydra stops at the first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vpeft_bench.choices import GROUPS, config_dir
from vpeft_bench.config import register_schema
from vpeft_bench.errors import Problem, nearest, unknown_name
from vpeft_bench.methods.parts.hf_types import why_not_offered
from vpeft_bench.purpose import Purpose, has_no_effect, idle_problems

LAUNCHER = "hydra/launcher"
INSTALL_LAUNCHERS = "install the launchers: pip install 'vpeft-bench[joblib,slurm]'"


@dataclass
class Checked:
    """What could be made of a command line.

    Attributes:
        problems: everything wrong with the overrides.
        config: the config composed from those that are right; of a sweep, the first value.
    """

    problems: list[Problem] = field(default_factory=list)
    config: DictConfig | None = None


def check_overrides(
    overrides: Sequence[str],
    search_path: Sequence[str] = (),
    multirun: bool = True,
    purpose: Purpose = Purpose.RUN,
) -> Checked:
    """Parse and check ``KEY=VALUE`` overrides against the config tree and its types.

    Args:
        overrides: as typed; a value may be a sweep (``a,b``).
        search_path: further config directories (``--config-dir``).
        multirun: whether a sweep was asked for (``-m``); an experiment may ask for it as well.
        purpose: what the config is for; keys that have no effect on it are refused.
    """
    register_schema()
    checked = Checked()
    parsed = [override for text in overrides if (override := _parse(text, checked)) is not None]
    idle = [override for override in parsed if has_no_effect(override, purpose)]
    checked.problems += idle_problems(idle, purpose)
    parsed = [override for override in parsed if override not in idle]
    composed = [o.input_line or "" for o in parsed if o.key_or_group.startswith("hydra.")]
    if search_path:
        composed.append(f"hydra.searchpath=[{','.join(f'file://{path}' for path in search_path)}]")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        groups = {group: _group_choices(group, composed) for group in (*GROUPS, LAUNCHER)}
        for override in parsed:
            if (group := override.key_or_group) not in groups:
                continue
            wrong = list(_unknown_choices(override, groups[group]))
            checked.problems += wrong
            if not wrong and (values := _values(override)):
                composed.append(f"{group}={_as_text(values[0])}")
        try:
            config = compose("config", overrides=composed, return_hydra_config=True)
            if first := _first_of_experiment(config, parsed, groups):
                composed += first
                config = compose("config", overrides=composed, return_hydra_config=True)
            swept = _swept_configs(parsed, groups, composed)
        except (HydraException, YAMLError) as error:
            fix = INSTALL_LAUNCHERS if LAUNCHER in str(error) else ""
            what = " ".join(str(error).split())
            checked.problems.append(Problem(" ".join(composed), what, fix))
            return checked
    checked.problems += _launch_problems(config, parsed, multirun)
    with open_dict(config):
        del config["hydra"]
    for override in parsed:
        key = override.key_or_group
        if key in groups or override.package or override.is_delete() or override.is_add():
            continue
        if key.startswith(("hydra.", "hydra/")):
            continue  # what is Hydra's own, Hydra checks itself
        wrong = list(_value_problems(config, override))
        for choice, other in swept.get(key.split(".")[0], {}).items():
            wrong += [
                Problem(f"{problem.where} with {choice}", problem.what, problem.fix)
                for problem in _value_problems(other, override)
            ]
        checked.problems += wrong
        if not wrong and (values := _values(override)):
            OmegaConf.update(config, key, _plain(values[0]))
    missing = list(_missing(OmegaConf.to_container(config, resolve=False)))
    checked.problems += [Problem(k, "has no value", f"type {k}=...") for k in missing]
    checked.config = None if missing else config
    return checked


def _launch_problems(
    config: DictConfig, parsed: Sequence[Override], multirun: bool
) -> Iterator[Problem]:
    """A sweep without ``-m``, and a cluster that is not there."""
    if not multirun and config.hydra.mode is not RunMode.MULTIRUN:
        for override in parsed:
            if override.is_sweep_override():
                yield Problem(override.input_line or "", "is a sweep", "add -m to run every value")
        launcher = config.hydra.runtime.choices.get(LAUNCHER)
        if launcher not in (None, "basic"):
            what = "launches the runs of a sweep, and this is a single run"
            yield Problem(f"{LAUNCHER}={launcher}", what, "add -m")
    slurm = str(config.hydra.launcher.get("_target_", "")).endswith(".SlurmLauncher")
    if slurm and shutil.which("sbatch") is None:
        fix = "run it on a cluster's login node, or in parallel here: hydra/launcher=joblib"
        yield Problem("hardware=slurm", "this machine has no sbatch", fix)


def _first_of_experiment(
    config: DictConfig, parsed: Sequence[Override], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """The first choice of every group that an experiment sweeps by itself, such as its data."""
    swept = config.hydra.sweeper.get("params") or {}
    typed = {override.key_or_group for override in parsed}
    return [
        f"{group}={str(values).split(',')[0].strip()}"
        for group, values in swept.items()
        if group in groups and group not in typed
    ]


def _swept_configs(
    parsed: Sequence[Override], groups: Mapping[str, Sequence[str]], overrides: Sequence[str]
) -> dict[str, dict[str, DictConfig]]:
    """For each swept group whose keys are overridden too: its other choices, composed.

    ``method=lora,ssf method.rank=4`` is wrong for ssf alone.
    """
    with_keys = {o.key_or_group.split(".")[0] for o in parsed if "." in o.key_or_group}
    return {
        group: {
            f"{group}={name}": compose("config", overrides=[*overrides, f"{group}={name}"])
            for name in map(_as_text, _values(override)[1:])
            if name in groups[group]
        }
        for override in parsed
        if (group := override.key_or_group) in groups and group in with_keys
    }


def _parse(text: str, checked: Checked) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        commands = "leaderboard, methods, data, show, cost"
        fix = f"KEY=VALUE, or a sub-command: {commands}; --help lists the keys"
        checked.problems.append(Problem(text, "is not an override", fix))
        return None


def _group_choices(group: str, overrides: list[str]) -> list[str]:
    """Choices of ``group`` anywhere on Hydra's search path, sub-folders included."""
    loader = GlobalHydra.instance().config_loader()
    found = [
        loader.get_group_options(group, kind, config_name="config", overrides=overrides)
        for kind in (ObjectType.CONFIG, ObjectType.GROUP)
    ]
    names = [name for name in found[0] if not name.startswith("_")]
    for folder in found[1]:
        names += [f"{folder}/{name}" for name in _group_choices(f"{group}/{folder}", overrides)]
    return names


def _values(override: Override) -> list[Any]:
    """The values of a plain or comma-separated override; range and glob are Hydra's to expand."""
    if (
        override.value_type is ValueType.CHOICE_SWEEP
        or override.value_type is ValueType.SIMPLE_CHOICE_SWEEP
    ):
        return list(override.sweep_iterator())
    return [] if override.is_sweep_override() else [override.value()]


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _as_text(value: Any) -> str:
    return "null" if value is None else str(_plain(value))


def _unknown_choices(override: Override, choices: Sequence[str]) -> Iterator[Problem]:
    group = override.key_or_group
    for value in _values(override):
        name = _as_text(value)
        if name in choices or (name == "null" and group == "experiment"):
            continue
        if group == "method" and (reason := why_not_offered(name)):
            yield Problem(f"method={name}", f"is not offered: {reason}")
            continue
        problem = unknown_name(group, name, choices)
        fix = f"{problem.fix}\n{INSTALL_LAUNCHERS}" if group == LAUNCHER else problem.fix
        yield Problem(problem.where, problem.what, fix)


def _value_problems(config: DictConfig, override: Override) -> Iterator[Problem]:
    key = override.key_or_group
    known = [*_keys(config), *GROUPS]
    parts = key.split(".")
    if key not in known and not any(k.startswith(f"{key}.") for k in known):
        close = nearest(key, known)
        siblings = [k for k in known if k.rpartition(".")[0] == ".".join(parts[:-1])]
        fix = [f"did you mean {close}=..."] if close else []
        if siblings and len(parts) > 1:
            fix.append(f"keys there: {', '.join(siblings)}")
        yield Problem(key, "no such key", "\n".join(fix))
        return
    for value in _values(override):
        trial = config.copy()
        try:
            OmegaConf.update(trial, key, _plain(value))
        except OmegaConfBaseException as error:
            what = str(error).splitlines()[0]
            now = OmegaConf.select(config, key)
            yield Problem(
                f"{key}={_as_text(value)}", what, f"now: {key}={getattr(now, 'name', now)}"
            )


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Keys that hold ``???``; OmegaConf's own search fails at interpolations of such keys."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{path}.{name}" if path else str(name))
    elif node == "???":
        yield path


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of ``config``, leaves and nodes that hold nothing yet."""
    keys = []
    for name in map(str, config):
        path = f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and len(node) and not node._is_none():
            keys += _keys(node, f"{path}.")
        else:
            keys.append(path)
    return keys
