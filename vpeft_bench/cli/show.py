"""``python -m vpeft_bench show RUN``: what a finished run predicts, beside the truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpeft_bench.cli.arguments import typed_count, typed_picture
from vpeft_bench.cli.flags import refuse_config_dir
from vpeft_bench.files import typed_path
from vpeft_bench.runs.shown import FILE, PICTURES, show


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """Draw what a run predicts; the process's exit status.

    Raises:
        VpeftBenchError: as :func:`show`.
        OSError: the picture cannot be written.
    """
    refuse_config_dir(own, "show")
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench show",
        description="Draw what a finished run predicts, beside the truth.",
    )
    parser.add_argument(
        "run", type=typed_path, metavar="RUN", help="run directory, or its record.json"
    )
    parser.add_argument(
        "--pictures", type=typed_count, default=PICTURES, help=f"default: {PICTURES}"
    )
    parser.add_argument("--out", type=typed_picture, help=f"default: {FILE} in the run directory")
    parser.add_argument("--root", help="where the data set lies now: data.root of the run")
    options = parser.parse_args(arguments)
    print(show(options.run, options.pictures, options.out, options.root))
    return 0
