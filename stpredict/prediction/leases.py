"""A lease on a slide's result or another job, so that many calls can share a folder and do each job once.

A lease is a small file that its owner touches regularly. If nobody touched it for long, another process may take it
over. Both times are the file system's, so clocks may differ. If two processes still work on one slide, the first to
finish removes the shards, and the other finds the result: both files are always whole or missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stpredict.console import Report
from stpredict.storage.files import TEMPORARY

RENEW_S = 20.0
LAPSED_S = 120.0
#: How long to wait, after taking over a lease, for others that take it over at the same moment.
SETTLE_S = 0.5
#: How often to look whether a lease that is waited for is free.
WAIT_S = 1.0


@dataclass(frozen=True)
class Lease:
    """A lease that is held and renewed until it is released."""

    path: Path
    token: str
    _stop: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self._stop.set()
        if _token(self.path) == self.token:
            self.path.unlink(missing_ok=True)

    def renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                if _token(self.path) == self.token:  # else another process took it over
                    os.utime(self.path)
            except OSError:
                continue  # a network share that is away for a while; others may take over


def is_held(path: Path) -> bool:
    """Does a process, here or elsewhere, hold the lease? True if that cannot be determined."""
    try:
        return _has_lapsed(path) is False
    except OSError:
        return True


def leases_in(folder: Path) -> Iterator[Path]:
    """The leases below a folder, without those that are being written."""
    return (path for path in folder.rglob("*.lease") if not TEMPORARY.fullmatch(path.name))


def is_lease(path: Path) -> bool:
    """Is the file a lease? A result's lease may be empty, if its owner was killed before it wrote."""
    try:
        content = path.read_text()
        return {"token", "where", "pid"} <= set(json.loads(content)) if content else path.stem.endswith(".h5ad")
    except (OSError, ValueError, TypeError):
        return False


def take_lease(path: Path) -> Lease | None:
    """Hold the lease at `path`, or None if another process does."""
    token = secrets.token_hex(8)
    content = json.dumps({"token": token, "where": _where(), "pid": os.getpid()})
    try:
        _create(path, content)
    except FileExistsError:
        lapsed = _has_lapsed(path)
        if lapsed is None:  # released just now
            return take_lease(path)
        if not lapsed:
            return None
        ours = path.with_name(f".{token}.tmp.lease")
        _create(ours, content)
        ours.replace(path)
        time.sleep(SETTLE_S)
        if _token(path) != token:
            return None
    lease = Lease(path, token)
    threading.Thread(target=lease.renew, daemon=True).start()
    return lease


@contextmanager
def alone(lease_path: Path, meanwhile: str, report: Report) -> Iterator[None]:
    """While this lasts, no other call is within it; one that waits for that reports what is done `meanwhile`."""
    waited = False
    while not (lease := take_lease(lease_path)):
        if not waited:
            report(meanwhile)
        waited = True
        time.sleep(WAIT_S)
    try:
        yield
    finally:
        lease.release()


def _create(path: Path, content: str) -> None:
    """Make a file, which is never there without its content where the file system has hard links.

    Raises FileExistsError, and OSError if the disk is full; then no file is left.
    """
    written = path.with_name(f".{secrets.token_hex(8)}.tmp.lease")
    try:
        written.write_text(content)
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links, or no room
        _create_empty(path, content)
    finally:
        written.unlink(missing_ok=True)


def _create_empty(path: Path, content: str) -> None:
    """As `_create`; a process that is killed may leave the file without its content."""
    file = path.open("x")
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _has_lapsed(path: Path) -> bool | None:
    """Has the lease lapsed, or did its owner die on this machine? None if the file is gone."""
    now = path.with_name(f".{secrets.token_hex(8)}.tmp.lease")
    try:
        now.touch()
        if now.stat().st_mtime - path.stat().st_mtime > LAPSED_S:
            return True
        content = json.loads(path.read_text())
        return content["where"] == _where() and not _is_alive(int(content["pid"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return False  # being written, or damaged: it lapses by its age
    finally:
        now.unlink(missing_ok=True)


def _token(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["token"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _where() -> str:
    """A hash of this machine since its last start, and of its namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = Path("/proc/self/ns/pid").readlink()
    except OSError:
        boot, processes = "", Path()
    return hashlib.sha256(f"{platform.node()} {boot} {processes}".encode()).hexdigest()[:16]


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # on Windows os.kill would interrupt it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
