"""Measure the speed bars of this package and write them as a table.

    python scripts/benchmark_speed.py                        # everything, on an idle machine
    python scripts/benchmark_speed.py lora_vs_full start_up  # some of it
    python scripts/benchmark_speed.py --quick                # does everything work? no numbers
    python scripts/benchmark_speed.py --list                 # what there is

Everything takes about two hours on two cores. Each item is measured in a process of its own and
written as soon as it is known, to ``results/speed/<device>/<item>.json``; ``bars.md`` and
``bars.csv`` beside it are made anew from all files that lie there. So an interrupted call loses one
item at most, and one that is repeated replaces its own numbers only.

Every number is a median with its quartiles. The sides of a ratio are measured in turn, A B A B ...,
and the ratio is that of neighbours, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from speed import leaderboard_bars, run_bars, serve_bars, step_bars
from speed.measure import Row, Settings
from speed.tables import circumstances, device_slug, write_item, write_tables

from vpeft_bench.runs.host import flush_denormals, keep_freed_memory

ITEMS: dict[str, Callable[[Settings], list[Row]]] = {
    item.__name__: item
    for item in (
        *run_bars.ITEMS,
        *step_bars.ITEMS,
        *serve_bars.ITEMS,
        *leaderboard_bars.ITEMS,
    )
}
ON_GPU = ("hundred_epochs",)
"""Not measured on a CPU unless asked for: they take hours there."""
RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed"


def main() -> int:
    arguments = parse(sys.argv[1:])
    if arguments.list:
        print("\n".join(f"{name:<18} {title(name)}" for name in ITEMS))
        return 0
    device = torch.device(arguments.device)
    settings = Settings(device, arguments.quick, arguments.repeats, arguments.slow_repeats)
    if arguments.out is None:
        arguments.out = tempfile.mkdtemp() if arguments.quick else str(RESULTS)
    folder = Path(arguments.out, device_slug(settings))
    names = arguments.items or [
        name for name in ITEMS if device.type == "cuda" or arguments.quick or name not in ON_GPU
    ]
    if len(names) == 1:
        measure(names[0], settings, folder)
        print(write_tables(folder, list(ITEMS)))
        return 0
    failed = [name for name in names if not in_own_process(name, arguments)]
    if len(failed) < len(names):
        print(write_tables(folder, list(ITEMS)))
    print(f"written to {folder}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="*", metavar="ITEM", help="see --list; all by default")
    parser.add_argument("--list", action="store_true", help="name the items and stop")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few repeats, no bars")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, help="of everything; 7, or 2 with --quick")
    parser.add_argument(
        "--slow-repeats", type=int, help="of uncached runs, minutes each; 3, or 1 with --quick"
    )
    parser.add_argument("--out", help="folder of the results; a temporary one with --quick")
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.items) - set(ITEMS):
        parser.error(f"no item {', '.join(sorted(unknown))}; items: {', '.join(ITEMS)}")
    if parsed.repeats is None:
        parsed.repeats = 2 if parsed.quick else 7
    if parsed.slow_repeats is None:
        parsed.slow_repeats = 1 if parsed.quick else 3
    return parsed


def title(name: str) -> str:
    return str(ITEMS[name].__doc__).strip()


def measure(name: str, settings: Settings, folder: Path) -> None:
    """Measure one item in this process and write it."""
    keep_freed_memory()  # as every run does; here both sides of a ratio profit
    flush_denormals()
    where = circumstances(settings)
    rows = ITEMS[name](settings)
    write_item(folder, name, title(name), rows, settings, where)


def in_own_process(name: str, arguments: argparse.Namespace) -> bool:
    """Measure one item in a process of its own: memory, threads and caches start anew."""
    print(f"{name}: {title(name)}", flush=True)
    command = [
        *(sys.executable, __file__, name, "--out", arguments.out, "--device", arguments.device),
        *("--repeats", str(arguments.repeats), "--slow-repeats", str(arguments.slow_repeats)),
        *(["--quick"] if arguments.quick else []),
    ]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
