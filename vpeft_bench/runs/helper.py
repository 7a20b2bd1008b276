"""The process of a further device of a run: ``python -m vpeft_bench.runs.helper``.

Its leader starts it and writes what is to be run to its standard input, see
:mod:`vpeft_bench.runs.team`.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading

from vpeft_bench import plugins


def main() -> int:
    """Do what the leader does, without writing anything; the exit status."""
    from vpeft_bench.runs.run import follow  # while the leader looks at its data
    from vpeft_bench.runs.team import Helper

    plugins.load()
    try:
        config, rank, size, port = pickle.load(sys.stdin.buffer)  # of the leader
    except EOFError:  # there will be nothing to do
        return 1
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    team = Helper(rank, size, port)
    try:
        follow(config, team)
        team.finish()
    except BaseException as error:  # whatever it is, the leader tells it
        team.failed(error)
        return 1
    return 0


def _end_with_the_leader() -> None:
    sys.stdin.buffer.read()  # its end of the pipe is open as long as the leader lives
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # whatever threads still do
