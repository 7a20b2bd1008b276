"""Everything that is measured on a GPU: cost cards of all methods, the speed bars, whole trainings.

    python scripts/benchmark_gpu.py                  # everything, about an hour on one fast GPU
    python scripts/benchmark_gpu.py cards_vit speed  # some of it
    python scripts/benchmark_gpu.py --device cpu --tiny --out tiny   # does the script work?

Cards go to ``results/cards``, bars to ``results/speed/<device>``. Each is written as soon as it is
measured, and a card that is there is not measured again: where time on the GPU is short, the same
command goes on where the last one was cut off. Needs no network: weights are random.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
METHODS = "method=glob(*)"

CARDS = {
    "cards_vit": ["backbone=vit_b16", "cost.batch_size=64"],
    "cards_swin": ["backbone=swin_b", "cost.batch_size=16", "cost.inference_batch_size=64"],
    "cards_detection": [
        *("backbone=swin_b", "cost.image_size=[800,1344]"),
        *("cost.batch_size=2", "cost.inference_batch_size=2"),
    ],
}
TINY_CARDS = {
    "cards_vit": ["backbone.name=vit_tiny_patch16_224", "backbone.image_size=32"],
    "cards_swin": ["backbone.name=swin_tiny_patch4_window7_224"],
    "cards_detection": [
        *("backbone.name=swin_tiny_patch4_window7_224", "cost.image_size=[64,96]"),
    ],
}
TINY_METHODS = "method=linear,vpt_deep"
TINY = ["backbone=timm", "cost.batch_size=1", "cost.inference_batch_size=1", "cost.steps=2"]
TINY += ["cost.blocks=2", "cost.warmup_steps=1", "cost.allow_busy=true"]
PARTS = ("cards_vit", "speed", "cards_swin", "cards_detection")


def main() -> int:
    """Measure the parts asked for, each in processes of its own; 1 where one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks; no numbers to keep")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    failed = [
        part
        for part in arguments.parts or PARTS
        if subprocess.run(command(part, arguments), check=False).returncode != 0
    ]
    print(f"written below {arguments.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def command(part: str, arguments: argparse.Namespace) -> list[str]:
    """What measures a part."""
    if part == "speed":
        speed = [str(REPOSITORY / "scripts" / "benchmark_speed.py"), "--device", arguments.device]
        quick = ["lora_vs_full", "hundred_epochs", "--quick"] if arguments.tiny else []
        return [sys.executable, *speed, *quick, "--out", str(arguments.out / "speed")]
    asked = [METHODS, *CARDS[part]]
    if arguments.tiny:
        asked = [TINY_METHODS, *TINY, *TINY_CARDS[part]]
    hardware = "gpu" if arguments.device == "cuda" else "cpu"
    where = [f"hardware={hardware}", f"cost.results_dir={arguments.out / 'cards'}"]
    return [sys.executable, "-m", "vpeft_bench", "cost", "-m", *asked, *where]


if __name__ == "__main__":
    sys.exit(main())
