"""The log on the console."""

import logging

from nnunet_invariance.common.console import ConsoleFormatter


def test_errors_are_red_on_a_terminal():
    levels = (logging.ERROR, logging.INFO)
    error, note = (logging.LogRecord("n", level, "", 0, "collapse", None, None) for level in levels)
    assert ConsoleFormatter(colour=True).format(error) == "\x1b[31merror: collapse\x1b[0m"
    assert ConsoleFormatter(colour=True).format(note) == "collapse"
