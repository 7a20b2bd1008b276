"""Whether a record is of the run that it says it is of.

Its hash is computed again from what was asked, the data and the weights. A record that was edited,
or copied from one run to another, is not shown.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from vpeft_bench.config.identity import asked_hash, scientific
from vpeft_bench.errors import Problem
from vpeft_bench.files import sha256
from vpeft_bench.records.run_record import RunRecord, WeightsLabel

DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "backbones" / "demo_vit.safetensors"

Found = tuple[Path, RunRecord]


def run_name(record: RunRecord) -> str:
    """What two records of the same run have in common, whatever they call it."""
    return f"{record.config_hash}/seed{record.asked.get('seed')}"


def verified(found: Iterable[Found]) -> tuple[list[Found], list[Problem]]:
    """The records whose hash is that of what was asked, and why the others are not shown.

    Records from before schema 5 do not say what of weights in a user's file entered the hash, and
    runs that ended before their weights were loaded do not know it. Such a record is believed
    unless another one has its hash and was asked for something else.
    """
    shown: list[Found] = []
    problems: list[Problem] = []
    unproven: list[Found] = []
    contents: dict[str, set[str]] = defaultdict(set)
    proven: set[str] = set()
    for path, record in found:
        identity = _weights_identity(record)
        if identity is None or record.where.data_fingerprint is None:
            unproven.append((path, record))
            contents[record.config_hash].add(_content(record))
            continue
        true = asked_hash(
            record.asked,
            record.where.data_fingerprint,
            identity,
            record.uncounted,
            record.method_version,
        )
        if true == record.config_hash:
            shown.append((path, record))
            contents[true].add(_content(record))
            proven.add(true)
        else:
            what = f"config_hash is {record.config_hash}, but what was asked has {true}"
            problems.append(Problem(str(path), f"left out: {what}"))
    trusted = {_content(record) for _, record in shown}
    for path, record in unproven:
        alone = len(contents[record.config_hash]) == 1
        if alone or (record.config_hash in proven and _content(record) in trusted):
            shown.append((path, record))
        else:
            what = f"records of config_hash {record.config_hash} were asked for different things"
            problems.append(Problem(str(path), f"left out: {what}"))
    return shown, problems


def _weights_identity(record: RunRecord) -> str | None:
    """What of the weights entered the hash; None where that cannot be told."""
    weights, backbone = record.where.weights, record.asked.get("backbone")
    if weights is None:
        return None
    if weights.identity is not None:
        return weights.identity
    if weights.label is WeightsLabel.RANDOM:
        return "none"
    if not isinstance(backbone, dict) or backbone.get("weights") != "hub":
        return None
    return _packaged() if weights.label is WeightsLabel.DEMO else weights.source


@functools.cache
def _packaged() -> str:
    return sha256(DEMO_WEIGHTS)


def _content(record: RunRecord) -> str:
    asked = scientific(record.asked, record.uncounted)
    return json.dumps([asked, record.where.data_fingerprint], sort_keys=True)
