"""What records and cost cards from before version 6 did not say, because it was always the same.

Nothing here grows: whoever writes a record today says it.
"""

from __future__ import annotations

from typing import Any

_ADDED_BY_THEN: dict[str, dict[str, dict[str, Any]]] = {
    "compacter": {
        "activation": {"neutral": "gelu"},
        "phm_init_range": {"neutral": 0.01},
        "unfreeze_layer_norms": {"neutral": False},
    },
    "spt": {"proj_reads": {"neutral": "output", "where": {"form": "adapter"}}},
    "ssf": {"merge_norms": {"neutral": True, "family": "swin"}},
    "synqt": {"head_norm_eps": {"neutral": None}},
}


def with_method_facts(raw: dict[str, Any]) -> dict[str, Any]:
    """The options that did not count, and the version that every method had."""
    asked = raw.get("asked")
    return raw | {
        "uncounted": uncounted(asked) if isinstance(asked, dict) else [],
        "method_version": 1,
    }


def uncounted(asked: dict[str, Any]) -> list[str]:
    """Options of the method that are no part of ``config_hash``."""
    method, backbone = asked.get("method"), asked.get("backbone")
    if not isinstance(method, dict):
        return []
    model = str(backbone.get("model")) if isinstance(backbone, dict) else ""
    family = "swin" if model.startswith("swin_") else "vit"
    return [
        name
        for name, option in _ADDED_BY_THEN.get(str(method.get("name")), {}).items()
        if name in method
        and (
            option.get("family", family) != family
            or any(method.get(k) != v for k, v in option.get("where", {}).items())
            or method[name] == option["neutral"]
        )
    ]
