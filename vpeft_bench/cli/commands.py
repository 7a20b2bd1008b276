"""The sub-commands by name: ``python -m vpeft_bench NAME ...``.

Each imports what it needs, and no more; importing this module imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vpeft_bench.registry import Registry

Run = Callable[[Sequence[str], Path | None], int]
"""From what follows the name, and the folder that ``--config-dir`` names, to the exit status."""

COMMANDS: Registry[Run] = Registry(
    "sub-command",
    {
        "leaderboard": "vpeft_bench.cli.leaderboard:main",
        "methods": "vpeft_bench.cli.methods:main",
        "backbones": "vpeft_bench.cli.backbones:main",
        "data": "vpeft_bench.cli.data:main",
        "show": "vpeft_bench.cli.show:main",
        "export": "vpeft_bench.cli.export:main",
        "cost": "vpeft_bench.cli.cost:main",
        "statistics": "vpeft_bench.cli.statistics:main",
        "tune": "vpeft_bench.cli.tune:main",
        "runs": "vpeft_bench.cli.runs:main",
    },
)
OWN = (
    *("leaderboard", "methods", "backbones", "data", "show", "export", "cost", "statistics"),
    *("tune", "runs"),
)
"""Those of this package, which ``--help`` explains."""
