"""``python -m vpeft_bench export RUN``: a run's weights, for use elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vpeft_bench.cli.flags import refuse_config_dir
from vpeft_bench.errors import ProblemsError, VpeftBenchError
from vpeft_bench.files import typed_path
from vpeft_bench.records.run_record import RECORD_NAME
from vpeft_bench.serving import CONFIG, FORMATS, export


def main(arguments: Sequence[str], own: Path | None = None) -> int:
    """``python -m vpeft_bench export RUN``; the exit status."""
    refuse_config_dir(own, "export")
    parser = argparse.ArgumentParser(
        prog="python -m vpeft_bench export",
        description="Write a run's weights, its method merged into them, for use elsewhere.",
    )
    parser.add_argument("run", type=typed_path, metavar="RUN", help="run directory")
    parser.add_argument("--format", choices=FORMATS, default="timm", help="default: timm, a folder")
    parser.add_argument("--out", type=typed_path, help="default: RUN/exported[.safetensors|.onnx]")
    options = parser.parse_args(arguments)
    run = options.run.parent if options.run.name == RECORD_NAME else options.run
    out = options.out or run / f"exported{FORMATS[options.format]}"
    try:
        if out.exists():
            raise VpeftBenchError(f"{out} is there already: type --out for another place")
        written = export(run, out, options.format)
    except (VpeftBenchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ProblemsError) else 1
    print(f"written: {written}")
    if options.format == "timm":
        print(f'load it: timm.create_model("local-dir:{written}", pretrained=True)')
        if json.loads((written / CONFIG).read_text())["architecture"] == "vpeft_demo_vit":
            print("after: import vpeft_bench.backbones.demo_vit, which timm does not know")
    if options.format == "onnx":
        print(f'load it: onnxruntime.InferenceSession("{written}")')
    return 0
