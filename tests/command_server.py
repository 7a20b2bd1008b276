"""``python -m vpeft_bench ...`` without the seconds that every process spends on importing torch.

A server imports everything once and forks a process for each command, with arguments, directory,
environment and outputs of its own. Nothing has run in the server, so a fork of it is as good as a
fresh process; what is imported when is tested where processes are started outright.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]

# What a run imports by and by; sub-commands are all imported.
IMPORTED = ("sklearn.datasets", "torchmetrics.classification", "vpeft_bench.runs.run")


class CommandServer:
    """Runs commands of this package in forked processes, one after the other."""

    def __init__(self, directory: Path) -> None:
        self._outputs = [directory / name for name in ("stdout", "stderr")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_server"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: list[str], cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As :func:`subprocess.run`; what takes longer than ``timeout`` seconds is killed."""
        request = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": environment,
            "outputs": list(map(str, self._outputs)),
            "timeout": timeout,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        status = json.loads(self._process.stdout.readline())
        printed = [path.read_text(encoding="utf-8") for path in self._outputs]
        if status is None:
            raise subprocess.TimeoutExpired(arguments, timeout, *printed)
        return subprocess.CompletedProcess(arguments, status, *printed)

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=60)


def become(request: dict[str, Any]) -> None:
    """Let this process be one that was started for the request."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor, path in enumerate(request["outputs"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    named = filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [request["cwd"], *(path for path in named if path not in sys.path)]
    sys.argv = [str(REPOSITORY / "vpeft_bench" / "__main__.py"), *request["arguments"]]


def wait(process: int, timeout: float) -> int | None:
    """The exit status as :mod:`subprocess` has it; None where the process took too long."""
    deadline = time.monotonic() + timeout
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """End the process with what ``main`` gives; without taking all modules apart, which is slow."""
    try:
        status = main()
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # as the interpreter ends: first threads, then what was registered
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def serve() -> None:
    """Answer each line of the standard input by the exit status of its command."""
    from vpeft_bench.cli.commands import COMMANDS, OWN

    for name in IMPORTED:
        import_module(name)
    for name in OWN:  # plug-ins are the request's: which there are, its environment says
        COMMANDS.get(name)
    gc.freeze()  # what is shared with the forks is not looked through by them, and stays shared
    from vpeft_bench.__main__ import main

    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        process = os.fork()
        if not process:
            become(request)
            run_and_exit(main)
        print(json.dumps(wait(process, request["timeout"])), flush=True)


if __name__ == "__main__":
    serve()
