"""Variants: named rows of a table, whose settings may differ between data sets.

A file ``configs/variant/NAME.yaml`` says what the settings are, and how they were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vpeft_bench.config.choices import config_folders
from vpeft_bench.config.schema import RunConfig, plain
from vpeft_bench.config.sections import VariantConfig
from vpeft_bench.errors import ConfigError, Problem, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig


def settings_on(variant: VariantConfig, data: str) -> dict[str, Any]:
    """The settings of a variant on one data set, by their keys as typed on the command line.

    Raises:
        ConfigError: it says nothing of this data set; names those that it is for.
    """
    if not variant.per_data:
        return dict(variant.settings)
    if data not in variant.per_data:
        close = nearest(data, variant.per_data)
        fix = [f"did you mean data={close}"] if close else []
        fix.append(f"it has settings for: {', '.join(variant.per_data)}")
        what = f"is not for data={data}"
        raise ConfigError([Problem(f"variant={variant.name}", what, "\n".join(fix))])
    return {**variant.settings, **variant.per_data[data]}


def find(name: str) -> VariantConfig | None:
    """The variant of the file ``variant/NAME.yaml``, if there is one; without Hydra."""
    import yaml

    paths = (folder / "variant" / f"{name}.yaml" for folder in config_folders())
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    return VariantConfig(**yaml.safe_load(path.read_text(encoding="utf-8"))["variant"])


def of_variant(key: str, *, _root_: DictConfig) -> Any:
    """``${of_variant:KEY}`` in a config file: what the variant sets ``KEY`` to on this data set."""
    from omegaconf import OmegaConf

    variant = OmegaConf.to_container(_root_.variant)
    assert isinstance(variant, dict)
    chosen = VariantConfig(**{str(name): value for name, value in variant.items()})
    found = settings_on(chosen, str(_root_.data.name))
    if key not in found:
        fix = f"it sets: {', '.join(found)}"
        raise ConfigError([Problem(f"variant={chosen.name}", f"does not set {key}", fix)])
    return found[key]


def problems(config: RunConfig) -> Iterator[Problem]:
    """A run that would be recorded under the name of a variant that it is not."""
    variant, method = config.variant, str(config.method.get("name"))
    if variant.method and method != variant.method:
        what = f"is a variant of {variant.method}, not of method={method}"
        yield Problem(f"variant={variant.name}", what, f"leave method={method} out")
        return
    try:
        wanted = settings_on(variant, config.data.name)
    except ConfigError as error:
        yield from error.problems
        return
    asked = plain(config)
    for key, value in wanted.items():
        now = _at(asked, key)
        if now != value:
            what = f"variant={variant.name} sets {key}={value} on {config.data.name}"
            fix = "leave it out; or copy the variant's file, change it there, and name it yours"
            yield Problem(f"{key}={now}", what, fix)


def _at(asked: Mapping[str, Any], key: str) -> Any:
    node: Any = asked
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
