"""Every problem of a command line's overrides, found before Hydra stops at the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vpeft_bench.choices import GROUPS, config_dir
from vpeft_bench.config import register_schema
from vpeft_bench.errors import Problem, nearest, unknown_name


@dataclass
class Checked:
    """What could be made of a command line.

    Attributes:
        problems: everything wrong with the overrides.
        config: the config composed from those that are right; of a sweep, the first value.
    """

    problems: list[Problem] = field(default_factory=list)
    config: DictConfig | None = None


def check_overrides(overrides: Sequence[str], search_path: Sequence[str] = ()) -> Checked:
    """Parse and check ``KEY=VALUE`` overrides against the config tree and its types.

    Args:
        overrides: as typed; a value may be a sweep (``a,b``).
        search_path: further config directories (``--config-dir``).
    """
    register_schema()
    checked = Checked()
    parsed = [override for text in overrides if (override := _parse(text, checked)) is not None]
    extra = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in search_path)}]"]
    extra += [o.input_line or "" for o in parsed if o.key_or_group == "hydra.searchpath"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = extra if search_path else extra[1:]
        groups = {group: _group_choices(group, composed) for group in GROUPS}
        chosen = []
        for override in parsed:
            if override.key_or_group in groups:
                wrong = list(_unknown_choices(override, groups[override.key_or_group]))
                checked.problems += wrong
                if not wrong:
                    chosen.append(f"{override.key_or_group}={_as_text(_first(override))}")
        try:
            config = compose("config", overrides=[*composed, *chosen])
            swept = _swept_configs(parsed, groups, [*composed, *chosen])
        except HydraException as error:
            checked.problems.append(Problem(" ".join(chosen), str(error)))
            return checked
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
        if not wrong and _values(override):
            OmegaConf.update(config, key, _plain(_first(override)))
    checked.config = config
    return checked


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
        fix = "KEY=VALUE, or a sub-command: leaderboard, methods, data; --help lists the keys"
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
    if override.is_choice_sweep():
        return list(override.sweep_iterator())
    if override.is_sweep_override():
        return []  # range and glob sweeps are Hydra's to expand
    return [override.value()]


def _first(override: Override) -> Any:
    return (_values(override) or [None])[0]


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _as_text(value: Any) -> str:
    return "null" if value is None else str(_plain(value))


def _unknown_choices(override: Override, choices: Sequence[str]) -> Iterator[Problem]:
    for value in _values(override):
        name = _as_text(value)
        if name not in choices and not (name == "null" and override.key_or_group == "experiment"):
            yield unknown_name(override.key_or_group, name, choices)


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
