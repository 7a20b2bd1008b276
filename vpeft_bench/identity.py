"""Which keys of a configuration make a run what it is, and the hash that follows from them.

Importing this module imports no config schema: leaderboards check hashes without it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from vpeft_bench.added_options import deciding, effective, family_of

# Keys that say where and how conveniently, not what: the same experiment on another machine keeps
# its identity. The seed has a directory of its own; data and weights enter by content, not by path.
NOT_SCIENTIFIC = (
    "seed",
    "results_dir",
    "rerun",
    "render",
    "predictions",
    "logger",
    "cost",
    "train.learning_rates",
    "hardware.name",
    "hardware.accelerator",
    "hardware.threads",
    "hardware.workers",
    "hardware.eval_batch_size",
    "hardware.feature_cache",
    "hardware.feature_cache_gib",
    "hardware.feature_cache_dir",
    "hardware.fused_attention",
    "hardware.fused_optimizer",
    "hardware.channels_last",
    "hardware.compile",
    "hardware.gradient_checkpointing",
    "backbone.weights",
    "data.root",
    "data.allow_duplicates",
    "data.allow_unseen_classes",
    "data.title",
    "data.folders",
    "data.train_size",
    "data.val_size",
    "data.test_size",
    "data.cache_gib",
    "data.licence",
    "data.source",
    "data.original_format",
)

# Keys that came later, and the values at which a run is what it was before: with these they are no
# part of its identity, so that earlier runs keep theirs. Options of methods: ``added_options``.
ADDED: dict[str, Any] = {
    "head": None,
    "head.norm_eps": 1e-6,
    "head.box": "2fc",
    "head.box_loss": "smooth_l1",
    "head.class_boxes": False,
    "input": None,
    "input.crop_shorter_sides": [],
    "input.crop_sides": [384, 600],
    "train.schedule": "cosine",
    "train.milestones": [],
    "train.layer_decay": 1.0,
    "train.head_lr_factor": 1.0,
    "data.lists": {},
    "data.hold_out": 0.0,
    "data.box_metric": "coco",
    "data.zero_is_ignored": False,
    "data.background": None,
    "data.skip_malformed": False,
    "hardware.feature_cache_dtype": "fp32",
}


def asked_hash(asked: dict[str, Any], data_fingerprint: str, weights_identity: str) -> str:
    """:func:`config_hash` of a config as a record keeps it, whichever version wrote it."""
    identity = {
        "config": scientific(asked),
        "data": data_fingerprint,
        "weights": weights_identity,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def scientific(asked: dict[str, Any]) -> dict[str, Any]:
    """What of a plain config belongs to a run's identity; a key that came later may be absent."""
    kept = copy.deepcopy(asked)
    for key in (*NOT_SCIENTIFIC, *ADDED):
        *parents, last = key.split(".")
        node: Any = kept
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            continue
        if key in NOT_SCIENTIFIC or node[last] == ADDED[key]:
            del node[last]
    if isinstance(method := kept.get("method"), dict):
        kept["method"] = deciding(method, _family(asked))
    return kept


def method_of(asked: dict[str, Any]) -> dict[str, Any]:
    """Name and options of the method that have an effect, whichever version wrote them."""
    return effective(asked["method"], _family(asked))


def _family(asked: dict[str, Any]) -> str:
    backbone = asked.get("backbone")
    return family_of(str(backbone.get("model")) if isinstance(backbone, dict) else "")
