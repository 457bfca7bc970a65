"""Bars on a terminal, lines elsewhere."""

import io
import itertools
import time

import pytest

from nnunet_invariance.common import progress
from nnunet_invariance.common.progress import Progress


class Terminal(io.StringIO):
    """Text of a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by ten seconds whenever tqdm reads it."""
    ticks = itertools.count(step=10)
    monkeypatch.setattr("tqdm.std.time", lambda: next(ticks))


def test_without_a_terminal_a_line_every_30_seconds(clock, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", written)
    for _ in Progress(range(12), desc="mining", unit="volume"):
        pass
    lines = written.getvalue().splitlines()
    assert 2 <= len(lines) <= 6
    assert all(line.startswith("mining: ") and " volumes (" in line and line.endswith(" left") for line in lines)
    assert lines[-1].startswith("mining: 12/12 volumes (100 %)")
    assert "\r" not in written.getvalue()


def test_a_short_step_writes_nothing_and_a_hidden_one_neither(clock, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", written)
    assert list(Progress([1], desc="scanning", unit="case")) == [1]
    assert list(Progress(range(20), desc="scanning", unit="case", shown=False)) == list(range(20))
    assert written.getvalue() == ""


def test_the_line_is_repeated_while_one_item_takes_long_and_no_longer(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", written)
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    for name in ("closed", "forgotten"):
        bar = Progress(total=2, desc=name, unit="case")
        until = time.monotonic() + 5
        while written.getvalue().count(name) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        if name == "closed":
            bar.close()
        del bar
        before = written.getvalue()
        time.sleep(0.1)
        assert written.getvalue() == before
        assert before.count(f"{name}: 0/2 cases (0 %)") >= 2


def test_a_terminal_has_a_bar_that_is_redrawn(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with Progress(total=4, initial=1, desc="synthesis", unit="element") as bar:
        bar.update(3)
    assert "\rsynthesis: 100%" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
