"""Start two processes as torchrun does, without its wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def in_two_processes(start: str, *arguments: object, folder: Path | None = None) -> list[str]:
    """Run the Python text `start` in two processes that can import what this one can; what they print."""
    path, port = os.pathsep.join(sys.path), free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", start, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    return [printed for printed, _ in outputs]
