"""A claim: one process at a time works on a run, a cost card or a point of a search.

A claim is a small file beside the result. What is relied on of the file system that processes and
machines share, all of which NFS offers since version 3:

- creating a file that must not exist (``O_EXCL``) succeeds for one process alone;
- a rename replaces a file at once;
- a file's time of change that is set to "now" is the time of the server: no machine's own clock is
  compared with another's;
- opening a file asks the server, whatever this machine remembers of it.

The owner touches its claim every :data:`BEAT` seconds. A claim is abandoned where its process is
gone, which its own machine knows at once; elsewhere, where nobody has touched it for :data:`STALE`
seconds of the server's clock, nor while it was watched for two more beats, should that clock have
been set. Whoever takes an abandoned claim over holds a claim on that very step meanwhile, so that
of many only one succeeds. An owner that was asleep for so long finds its claim lost, and writes
nothing more.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vpeft_bench.errors import ClaimedError, ClaimLostError
from vpeft_bench.files import TEMPORARY, sweep_temporary, write_atomically
from vpeft_bench.records.environment import utc_now

BEAT = 15.0
"""Seconds from one sign of life to the next."""
STALE = 120.0
"""Seconds without one, after which a claim of another machine counts as abandoned."""


@dataclass(frozen=True)
class Holder:
    """Who holds a claim.

    Attributes:
        token: of this claim and no other.
        host: the machine's name.
        pid: the process.
        system: boot and namespace in which ``pid`` means that process; empty where unknown.
        born: when the process began, in the kernel's ticks; null where unknown.
        since: ISO 8601, UTC, by the machine's own clock.
        epochs: that the work has, where it is a training.
    """

    token: str
    host: str = "unknown"
    pid: int = 0
    system: str = ""
    born: int | None = None
    since: str = ""
    epochs: int | None = None

    @classmethod
    def here(cls, epochs: int | None = None) -> Holder:
        """A new claim of this process."""
        pid, token = os.getpid(), uuid.uuid4().hex
        return cls(token, socket.gethostname(), pid, _system(), _born(pid), utc_now(), epochs)

    @property
    def alive(self) -> bool | None:
        """Whether the process lives; None where this machine cannot tell."""
        if not self.system or self.system != _system():
            return None
        return self.born is not None and _born(self.pid) == self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since or 'a moment ago'}"


class Claim:
    """A claim that this process holds, and keeps alive; see :func:`claimed`.

    Attributes:
        lost: whether another process has taken it over.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self.holder, self.lost = path, holder, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Before something is written that only the owner may write.

        Raises:
            ClaimLostError: another process has taken the claim over.
        """
        if self.lost or not self.touch():
            raise ClaimLostError(self.path)

    def touch(self) -> bool:
        """Give a sign of life; whether the claim is still this process's."""
        try:
            with self.path.open("rb") as file:
                self.lost = _holder(file.read()).token != self.holder.token
                if not self.lost:
                    os.utime(file.fileno())
        except FileNotFoundError:
            self.lost = True
        except OSError:  # the server is away, and nobody else can write there either
            pass
        return not self.lost

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if self.touch():
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT) and self.touch():
            pass


@contextmanager
def claimed(path: Path, epochs: int | None = None) -> Iterator[Claim]:
    """Hold the claim ``path``; its folder is there.

    Args:
        path: the claim.
        epochs: that the work has, for those who look on.

    Raises:
        ClaimedError: another process holds it.
        OSError: it cannot be written.
    """
    claim = Claim(path, _take(path, Holder.here(epochs)))
    try:
        yield claim
    finally:
        claim.release()


def holder_of(path: Path) -> Holder | None:
    """Who holds the claim ``path``; None for one that is not there, or seems abandoned."""
    holder = _read(path)
    return None if holder is None or _seems_abandoned(path, holder) else holder


def _take(path: Path, mine: Holder) -> Holder:
    content = json.dumps(asdict(mine)).encode()
    while True:
        with suppress(FileExistsError):
            _create(path, content)
            return mine
        if (holder := _read(path)) is None:  # released just now
            continue
        if not _abandoned(path, holder):
            raise ClaimedError(path, str(holder))
        with claimed(path.with_name(f".{path.name}.{holder.token}.{TEMPORARY}")):
            if _read(path) != holder:  # another was faster
                continue
            write_atomically(path, content, durable=False)
        sweep_temporary(path.parent)
        return mine


def _create(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(descriptor, content)
    except OSError:  # of a full disk
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _read(path: Path) -> Holder | None:
    try:
        return _holder(path.read_bytes())
    except FileNotFoundError:
        return None


def _holder(content: bytes) -> Holder:
    """Who wrote it; nobody known where it was not written to its end."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return Holder("unknown")


def _abandoned(path: Path, holder: Holder) -> bool:
    """Whether nobody works under a claim any more; of another machine it is watched for that."""
    if not _seems_abandoned(path, holder):
        return False
    if holder.alive is False:
        return True
    before = _changed(path)
    time.sleep(2 * BEAT)
    return _read(path) == holder and _changed(path) == before


def _seems_abandoned(path: Path, holder: Holder) -> bool:
    if holder.alive is not None:
        return not holder.alive
    try:
        return _now(path.parent) - _changed(path) > STALE
    except OSError:  # it went just now, or the folder cannot be written to
        return False


def _changed(path: Path) -> float:
    """When a file was last touched, seconds of the server's clock."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _now(folder: Path) -> float:
    """The time by the clock of the server that a folder lies on, seconds."""
    probe = folder / f".{uuid.uuid4().hex}.{TEMPORARY}"
    try:
        probe.touch()
        return _changed(probe)
    finally:
        probe.unlink(missing_ok=True)


# ---- what only Linux tells -----------------------------------------------------------------------


def _system() -> str:
    """Where a number of a process means one process; empty where that is not told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """When a process began, ticks since the machine's start; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
