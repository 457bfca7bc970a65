"""Bars on a terminal, lines elsewhere."""

import io
import itertools

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


def test_a_terminal_has_a_bar_that_is_redrawn(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with Progress(total=4, initial=1, desc="synthesis", unit="element") as bar:
        bar.update(3)
    assert "\rsynthesis: 100%" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
