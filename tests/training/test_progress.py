from __future__ import annotations

import io
import sys

import pytest

from stpredict.training import progress
from stpredict.training.progress import Pace, watching_steps


def test_pace_counts_only_what_this_call_did(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    pace = Pace(steps=100, done=40, steps_after=200)
    assert str(pace) == "step 40 of 100"
    for _ in range(10):
        clock[0] += 2.0
        pace.advance(16)
    assert str(pace) == "step 50 of 100, 8.0 patches a second, about 0:08:20 left"  # 250 more steps


def test_logs_get_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    told: list[str] = []
    with watching_steps("fold-1: train epoch 1 of 2", Pace(3, 0, 3), told.append) as advance:
        for _ in range(3):
            advance(16)
    assert [line.partition(",")[0] for line in told] == [
        "fold-1: train epoch 1 of 2: step 1 of 3",
        "fold-1: train epoch 1 of 2: step 2 of 3",  # of the third the epoch's own line tells
    ]
    told.clear()
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1000.0)
    with watching_steps("all: teach epoch 1 of 1", Pace(3, 0, 0), told.append) as advance:
        advance(16)
    assert not told


def test_processes_but_the_first_say_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setenv("RANK", "1")
    told: list[str] = []
    with watching_steps("train", Pace(3, 0, 0), told.append) as advance:
        advance(16)
    assert not told


def test_a_terminal_shows_a_bar_that_is_wiped_away(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with watching_steps("all: train epoch 1 of 2", Pace(4, 1, 4), print) as advance:
        advance(16)
    shown = screen.getvalue()
    assert "all: train epoch 1 of 2" in shown
    assert "step 2 of 4" in shown
    assert shown.rstrip().endswith("\x1b[2K")
