"""The log on the console."""

import logging
import sys


class ConsoleFormatter(logging.Formatter):
    """The bare message; an error begins with ``error:`` and is red on a terminal.

    >>> record = logging.LogRecord("package", logging.ERROR, "", 0, "collapse", None, None)
    >>> ConsoleFormatter(colour=False).format(record)
    'error: collapse'
    """

    def __init__(self, colour: bool) -> None:
        super().__init__("%(message)s")
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The text of one record."""
        text = super().format(record)
        if record.levelno < logging.ERROR:
            return text
        return f"\033[31merror: {text}\033[0m" if self.colour else f"error: {text}"


def log_to_console() -> None:
    """Send the package's log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(ConsoleFormatter(sys.stderr.isatty()))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("nnunet_invariance").setLevel(logging.INFO)
