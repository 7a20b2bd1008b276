"""A measurement in a fresh process; whatever becomes of the process, there is a card."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vpeft_bench.cost.request import Request, labels
from vpeft_bench.errors import DeviceBusyError
from vpeft_bench.records import cost_card as cards
from vpeft_bench.records.cost_card import CardStatus, CardWhere, CostCard
from vpeft_bench.records.environment import environment, utc_now

EXIT_BUSY = 3
"""Exit status of a process that found its device in use; what it says is on its standard output."""
STDERR = "stderr.txt"
_MEASURE = (sys.executable, "-m", "vpeft_bench.cost.measure")


def measure(request: Request, path: Path, command: Sequence[str] = _MEASURE) -> CostCard:
    """Measure in a process of its own, and write the card to ``path``.

    What the process said on its standard error stays beside a card that has no measurement.

    Args:
        command: measures, see :mod:`vpeft_bench.cost.measure`.

    Raises:
        DeviceBusyError: something else uses the device; no card is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, errors = path.with_suffix(".new"), path.with_name(STDERR)
    fresh.unlink(missing_ok=True)
    started, killed = utc_now(), _killed_for_memory()
    with errors.open("wb") as stderr:
        done = subprocess.run(
            [*command, str(fresh)],
            input=json.dumps(request.plain()).encode(),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    if done.returncode == EXIT_BUSY:
        errors.unlink()
        raise DeviceBusyError(done.stdout.decode(errors="replace").strip())
    if fresh.exists():
        os.replace(fresh, path)
        card = cards.read(path)
    else:
        killed_for_memory = done.returncode == -signal.SIGKILL and _killed_for_memory() != killed
        card = CostCard(
            card_id=path.parent.relative_to(request.cost.results_dir).as_posix(),
            status=CardStatus.OOM if killed_for_memory else CardStatus.FAILED,
            error=_how_it_ended(done.returncode, errors, killed_for_memory),
            asked=request.asked(),
            measured=None,
            where=CardWhere(**environment(), started=started, finished=utc_now()),
            labels=labels(request, None),
            uncounted=request.uncounted,
            method_version=request.method_version,
        )
        cards.write(card, path)
    if card.status in (CardStatus.OK, CardStatus.UNSUPPORTED):
        errors.unlink()
    return card


def _how_it_ended(status: int, errors: Path, killed_for_memory: bool) -> str:
    """In one line, what became of a process that left no card."""
    if status < 0:
        name = signal.Signals(-status).name
        why = ", by the kernel for lack of memory" if killed_for_memory else ""
        return f"the measuring process was killed by {name}{why}"
    said = errors.read_text(errors="replace").strip().splitlines()
    return f"the measuring process ended with status {status}: {said[-1] if said else 'no word'}"


def _killed_for_memory() -> int | None:
    """How many processes the kernel has killed for memory; None where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = (line.split() for line in lines)
    return next((int(count) for name, count in counts if name == "oom_kill"), None)
