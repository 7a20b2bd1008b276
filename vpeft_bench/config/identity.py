"""What makes a run, or a measurement, what it is, and the hash that follows from it.

The fields of the configuration say it themselves (:mod:`vpeft_bench.fields`); options of
methods do so as well. Nothing is enumerated here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from typing import Any

from vpeft_bench import always_counted
from vpeft_bench.config.schema import RunConfig, plain
from vpeft_bench.fields import Measured, Setting, settings
from vpeft_bench.tasks.names import TASKS, with_defaults

# What a run's identity knows by content, and where and how often a run is done.
_WHICH_RUN = ("seed", "results_dir", "data.root", "data.folders", "backbone.weights")


def config_hash(
    config: RunConfig,
    data_fingerprint: str,
    weights_identity: str,
    uncounted: Collection[str] = (),
    method_version: int = 1,
) -> str:
    """Ten hex digits naming the experiment: all that is scientific, data and weights by content.

    Args:
        config: its method has all of its options.
        data_fingerprint: of the data set as it is read.
        weights_identity: what of the weights counts.
        uncounted: options of the method that do not count, see
            :meth:`vpeft_bench.methods.base.Method.uncounted`.
        method_version: of the method.
    """
    asked = plain(config)
    return asked_hash(asked, data_fingerprint, weights_identity, uncounted, method_version)


def asked_hash(
    asked: dict[str, Any],
    data_fingerprint: str,
    weights_identity: str,
    uncounted: Collection[str] = (),
    method_version: int = 1,
) -> str:
    """:func:`config_hash` of a config as a record keeps it, whichever version wrote it."""
    kept = scientific(asked, uncounted)
    return scientific_hash(kept, data_fingerprint, weights_identity, method_version)


def scientific_hash(
    kept: dict[str, Any], data_fingerprint: str, weights_identity: str, method_version: int
) -> str:
    """:func:`config_hash` of what :func:`scientific` keeps of a config."""
    identity: dict[str, Any] = {
        "config": kept,
        "data": data_fingerprint,
        "weights": weights_identity,
    }
    if method_version != 1:
        identity["method_version"] = method_version
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def scientific(asked: dict[str, Any], uncounted: Collection[str] = ()) -> dict[str, Any]:
    """What of a plain config belongs to a run's identity."""
    kept = _kept(asked, "", lambda setting: setting.identity)
    if isinstance(method := asked.get("method"), dict):
        kept["method"] = counted(method, uncounted)
    if isinstance(task := asked.get("task"), dict):
        kept["task"] = _counted_task(task)
    return kept


def measured(asked: dict[str, Any], uncounted: Collection[str] = ()) -> dict[str, Any]:
    """What of a plain config, or of the part a card keeps, changes what is measured."""
    kept = _kept(asked, "", lambda setting: setting.measured is Measured.YES)
    kept["method"] = counted(asked["method"], uncounted)
    return kept


def counted(method: dict[str, Any], uncounted: Collection[str]) -> dict[str, Any]:
    """Name and options of a method without those that do not count."""
    return {name: value for name, value in method.items() if name not in uncounted}


def whole_task(asked: dict[str, Any]) -> dict[str, Any] | None:
    """Name and all options of the task of a run; those that came later are as they were then."""
    task = asked.get("task")
    return with_defaults(task) if isinstance(task, dict) else None


def _counted_task(task: dict[str, Any]) -> dict[str, Any]:
    """Name and options of a task without those that change nothing."""
    if task.get("name") not in TASKS:
        return task
    said = settings(TASKS.get(task["name"]).options)
    return {
        key: value
        for key, value in task.items()
        if key not in said or (said[key].identity and value != said[key].neutral)
    }


def _kept(part: dict[str, Any], prefix: str, counts: Callable[[Setting], bool]) -> dict[str, Any]:
    known, kept = settings(RunConfig), {}
    for name, value in part.items():
        setting = known.get(f"{prefix}{name}")
        if setting is not None:  # a key of another version counts
            if not counts(setting):
                continue
            if setting.section and isinstance(value, dict):
                value = _kept(value, f"{prefix}{name}.", counts)
                if not value and f"{prefix}{name}" not in always_counted.config_keys():
                    continue
            elif f"{prefix}{name}" not in always_counted.config_keys() and value == setting.neutral:
                continue
        kept[name] = value
    return kept


def setting_of(key: str) -> Setting | None:
    """What a dotted key of the configuration says of itself; None for one of another version."""
    return settings(RunConfig).get(key)


def same_run(config: RunConfig) -> str:
    """Equal for two configs of one command line that are the same run, whatever lies on disk.

    With ``rerun=true`` every config is another run.
    """
    content = asdict(config)
    for key in not_scientific():
        if config.rerun or key in _WHICH_RUN:
            continue
        *parents, last = key.split(".")
        node = content
        for parent in parents:
            node = node[parent]
        del node[last]
    return json.dumps(content, sort_keys=True, default=str)


def not_scientific() -> Iterator[str]:
    """Dotted keys of the configuration that are no part of a run's identity, outermost ones."""
    left_out: tuple[str, ...] = ()
    for key, setting in settings(RunConfig).items():
        if not setting.identity and not key.startswith(left_out or ("\0",)):
            left_out += (f"{key}.",)
            yield key
