"""The fields of ``--set`` in the help of a command: name, default, range and description."""

import argparse
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nnunet_invariance.common.options import Options

if TYPE_CHECKING:
    from nnunet_invariance.pretraining.engine.method import Method

#: How ``--set`` spells None, and how the descriptions of the options spell it.
AUTO = "auto"
NONE = (", or None for an automatic choice", ", or null"), "None: "


class SettingHelp(argparse.Action):
    """``--help`` that also lists the fields of ``--set``, once it is known to which method they belong.

    Args:
        settings: returns the whole help from the parser and the arguments that stand before ``--help``.
    """

    def __init__(
        self, option_strings: list[str], dest: str, settings: Callable[[argparse.ArgumentParser, Any], str]
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show this help message and exit")
        self.settings = settings

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Print the help and exit."""
        print(self.settings(parser, namespace), end="")
        parser.exit()


def describe_settings(kind: "type[Method]", loop: Mapping[str, Any]) -> str:
    """The options of the loop, with other defaults of a command in ``loop``, and those of the method as paragraphs."""
    from nnunet_invariance.pretraining.engine.options import LoopOptions

    presets = ", ".join(kind.options_class.presets)
    first = [f"  preset=NAME\n      Values of several options at once: one of {presets}."] if presets else []
    own = [*first, *_fields(kind.options_class, {})]
    of_loop = _fields(LoopOptions, {**kind.loop_defaults, **loop})
    titles = (f"options of {kind.name} (--set NAME=VALUE):", "options of the loop (--set NAME=VALUE):")
    return "\n\n".join(
        "\n".join((title, *paragraphs)) for title, paragraphs in zip(titles, (own, of_loop), strict=True)
    )


def _fields(options: type[Options], defaults: Mapping[str, Any]) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, 120) - 2
    for name, default, expected, doc in options.describe():
        for words in NONE[0]:
            expected = expected.replace(words, f", or {AUTO}")
        text = f"{doc.replace(NONE[1], f'{AUTO}: ')} [{expected}]"
        lines = textwrap.wrap(text, max(width, 40), initial_indent=6 * " ", subsequent_indent=6 * " ")
        yield "\n".join((f"  {name}={_spelled(defaults.get(name, default))}", *lines))


def _spelled(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return AUTO if value is None else str(value).lower() if isinstance(value, bool) else str(value)
