"""The command line ``nnunet-invariance COMMAND ...``.

Each command is a module of this package with two functions: ``add_parser(subparsers)`` and ``run(args)``. No module
here imports torch at its top level, so that ``--help`` answers at once.
"""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NoReturn

from nnunet_invariance import __version__
from nnunet_invariance.common.console import log_to_console
from nnunet_invariance.common.environment import check_numbers
from nnunet_invariance.common.wording import did_you_mean
from nnunet_invariance.errors import InvarianceError

COMMANDS = (
    "pretrain",
    "synthesize",
    "weights",
    "style",
    "predict",
    "adapt",
    "complete",
    "translate",
    "register",
    "probe",
    "evaluate",
    "demo",
    "doctor",
    "completion",
)


class Parser(argparse.ArgumentParser):
    """A parser, like those of its commands, whose error suggests the nearest name of a command or method."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        if found := re.match(r"argument [^-].*invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message):
            message += "." + did_you_mean(found[1], re.findall(r"[^', ]+", found[2]))
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    The status is 0 on success, 1 if the command reports a problem (``doctor``), 2 for an error of the user, and 130
    if the run was interrupted.
    """
    modules = load_commands()
    parser = make_parser(modules)
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    args.command_line = shlex.join(["nnunet-invariance", *words])
    if args.command is None:
        parser.print_help()
        return 0

    log_to_console()
    try:
        if args.command != "doctor":  # which reports them itself
            check_numbers()
        return modules[args.command].run(args)
    except InvarianceError as error:
        print(f"nnunet-invariance {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet-invariance {args.command}: interrupted", file=sys.stderr)
        return 130


def load_commands() -> dict[str, ModuleType]:
    """The modules of the commands by name."""
    return {name: importlib.import_module(f"nnunet_invariance.cli.{name}") for name in COMMANDS}


def make_parser(modules: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """The parser of the whole command line, from the modules of the commands by name."""
    parser = Parser(
        prog="nnunet-invariance",
        description="Pre-training for nnU-Net v2, and tools around it. Train and predict with nnU-Net's own commands, "
        "for example: nnUNetv2_train DATASET 3d_fullres 0 -tr AliceTrainer",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-invariance {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in modules.values():
        module.add_parser(subparsers)
    return parser


def entry_point() -> None:
    """Entry point of the console script."""
    sys.exit(main())
