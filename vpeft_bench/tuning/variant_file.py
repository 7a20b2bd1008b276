"""The variant that comes out of a search, as a file that ``variant=`` chooses.

``RESULTS/tuned/BACKBONE`` is a folder of configs, for ``--config-dir``: the variant
``lora/tuned@8`` is its file ``variant/lora/tuned@8.yaml``. It holds the settings that were chosen
on every data set that was searched under this name; ``variant.tuning`` says of each what the search
was and cost, and every run of the variant records that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from vpeft_bench.config.identity import setting_of
from vpeft_bench.config.schema import plain
from vpeft_bench.errors import Problem
from vpeft_bench.files import write_atomically
from vpeft_bench.formats import option_text
from vpeft_bench.records.run_record import directory_name
from vpeft_bench.tuning.choice import RULE
from vpeft_bench.tuning.search import Outcome, Search

FOLDER = "tuned"


def place_of(search: Search) -> Path:
    """The folder of configs that the variant of a search belongs to."""
    config = search.config
    return Path(config.results_dir) / FOLDER / directory_name(config.backbone.name)


def file_of(search: Search) -> Path:
    """The file of the variant of a search."""
    return place_of(search) / "variant" / f"{search.name}.yaml"


@dataclass(frozen=True)
class Told:
    """What holds for all data sets of a variant.

    Attributes:
        budget, space, sampler, searched: of the search.
        settings: what is no part of the search, and was typed beside it.
    """

    budget: int
    space: str
    sampler: str
    searched: list[str]
    settings: dict[str, Any]

    @classmethod
    def of(cls, search: Search, typed: Collection[str]) -> Told:
        """Of a search, with the keys that were typed on the command line."""
        asked = plain(search.config)
        kept = {}
        for key in typed:
            section = key.partition(".")[0]
            said = setting_of(key)
            trained = section == "train" and said is not None and said.identity
            if key not in search.space.keys and (section == "method" or trained):
                kept[key] = _at(asked, key)
        budget = search.config.tune.budget
        space = search.space
        return cls(budget, space.hash, space.sampler, space.keys, kept)


def problems(search: Search, told: Told) -> list[Problem]:
    """Why the variant of a search cannot be written where it belongs: another one lies there."""
    path = file_of(search)
    if not path.is_file():
        return []
    fix = "tune.name=NAME gives this one a name of its own; results_dir=DIR another place"
    try:
        there = _read(path)
        tuning = there["tuning"]
        before = Told(
            tuning["budget"],
            tuning["space"],
            tuning["sampler"],
            tuning["searched"],
            there["settings"],
        )
        other = tuning["per_data"].get(search.config.data.name, {}).get("search", search.id)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        what = f"is no variant that a search has written ({type(error).__name__}: {error})"
        return [Problem(str(path), what, fix)]
    what = ""
    if before != told:
        same = (told.budget, told.space) == (before.budget, before.space)
        was = option_text(before.settings) or "no settings" if same else f"space {before.space}"
        now = option_text(told.settings) or "no settings" if same else f"space {told.space}"
        what = f"is the variant of another search: {was} there, {now} here"
    elif other != search.id:
        what = f"has another search on {search.config.data.name}: other settings beside the space"
    return [Problem(str(path), what, fix)] if what else []


def write(outcomes: Sequence[Outcome], told: Told, command: str) -> Path:
    """Write what was chosen on some data sets; what the file says of others stays.

    Args:
        outcomes: searches of one variant, each with a choice.
        told: of all of them.
        command: that does the search again.
    """
    path = file_of(outcomes[0].search)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        there = _read(path) if path.is_file() else {"per_data": {}, "tuning": {"per_data": {}}}
        chosen, facts = dict(there["per_data"]), dict(there["tuning"]["per_data"])
        for outcome in outcomes:
            data = outcome.search.config.data.name
            assert outcome.choice is not None
            chosen[data] = outcome.choice.point.settings
            facts[data] = facts_of(outcome)
        write_atomically(path, _text(outcomes[0].search, told, chosen, facts, command).encode())
    return path


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """What a search was and cost on one data set, as ``variant.tuning.per_data`` keeps it.

    ``search`` names what was the same at all of its points; ``point`` is the chosen one and
    ``best`` the one with the best score; ``tried``, ``failed`` and ``given_up`` count points;
    ``seconds`` is the sum of all that the records of their runs measured, on ``device``; ``runs``
    are the hashes of the runs, null where a point was refused or given up.
    """
    choice, search = outcome.choice, outcome.search
    assert choice is not None
    assert choice.point.metrics is not None
    records = [point.record for point in outcome.points]
    devices = {record.where.device for record in records if record and record.where.device}
    return {
        "search": search.id,
        "seed": search.config.seed,
        "point": choice.point.number,
        "best": choice.best.number,
        "tried": len(outcome.points) - len(outcome.given_up),
        "failed": len(outcome.failed),
        "given_up": len(outcome.given_up),
        "seconds": round(outcome.seconds, 1),
        "device": ", ".join(sorted(devices)),
        "metric": choice.point.metrics.headline,
        "value": choice.point.metrics.value,
        "runs": [None if record is None else record.config_hash for record in records],
    }


def chosen_text(told: Told) -> str:
    """How the settings of the variant were chosen, as tables show it."""
    return f"tuned: {told.budget} points, space {told.space} ({told.sampler}), {RULE}"


def _text(
    search: Search,
    told: Told,
    chosen: Mapping[str, Any],
    facts: Mapping[str, Any],
    command: str,
) -> str:
    method = search.config.method["name"]
    variant = {
        "name": search.name,
        "method": method,
        "chosen": chosen_text(told),
        "settings": told.settings,
        "per_data": dict(sorted(chosen.items())),
        "tuning": {
            "budget": told.budget,
            "space": told.space,
            "sampler": told.sampler,
            "searched": told.searched,
            "per_data": dict(sorted(facts.items())),
        },
    }
    content: dict[str, Any] = {"defaults": [{"override /method": method}], "variant": variant}
    for key in (*told.settings, *told.searched):
        section, _, name = key.partition(".")
        content.setdefault(section, {})[name] = f"${{of_variant:{key}}}"
    body = yaml.dump(content, Dumper=_Quoting, sort_keys=False, width=100, allow_unicode=True)
    return (
        "# @package _global_\n"
        f"# {search.config.backbone.name}. Written by a search, from the records of its runs:\n"
        f"#   {command}\n"
        f"{body}"
    )


class _Quoting(yaml.SafeDumper):
    """Quotes what might be a number: Hydra reads 12345e67, which may be a hash, as one."""


def _quoted(dumper: _Quoting, text: str) -> yaml.ScalarNode:
    style = '"' if text[:1].isdigit() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Quoting.add_representer(str, _quoted)


def _read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(variant := content["variant"], dict):
        raise TypeError("its variant has no keys")
    return variant


def _at(asked: Mapping[str, Any], key: str) -> Any:
    node: Any = asked
    for part in key.split("."):
        node = node[part]
    return node
