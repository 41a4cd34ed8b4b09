"""A terminal to run programs on, and what stands on its screen in the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CTRL_C = b"\x03"
TOKEN = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|(.|\n)", re.DOTALL)


def interrupted_on_a_terminal(
    call: Sequence[object], folder: Path, is_under_way: Callable[[], bool], width: int
) -> tuple[int, list[str]]:
    """Press Ctrl-C on a terminal when a program is under way; its exit code, and the lines on the screen."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    drawn: list[bytes] = []

    def read_terminal() -> None:  # a terminal that nobody reads blocks the program once it is full
        with contextlib.suppress(OSError):
            while part := os.read(controller, 4096):
                drawn.append(part)

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    reader = threading.Thread(target=read_terminal, daemon=True)
    with subprocess.Popen(
        [str(part) for part in call], stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder,
        start_new_session=True, preexec_fn=take_terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        reader.start()
        deadline = time.monotonic() + 120
        while not is_under_way() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.write(controller, CTRL_C)
        code = process.wait(60)
    reader.join(timeout=10)
    os.close(controller)
    return code, screen(b"".join(drawn).decode(), width)


def screen(text: str, width: int) -> list[str]:
    """The lines that a terminal of this width shows, as far as this program steers one."""
    lines, row, column = [[" "] * width], 0, 0
    for found in TOKEN.finditer(text):
        number, command, letter = found.groups()
        if command == "A":
            row = max(0, row - int(number or 1))
        elif command == "K":
            lines[row] = [" "] * width
        elif letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
        elif letter is not None:
            if column == width:  # a full line wraps when more comes
                row, column = row + 1, 0
            if row == len(lines):
                lines.append([" "] * width)
            lines[row][column] = letter
            column += 1
        if row == len(lines):
            lines.append([" "] * width)
    return ["".join(line).rstrip() for line in lines]
