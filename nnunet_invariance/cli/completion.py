"""``nnunet-invariance completion``: print the script with which a shell completes the commands."""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError

#: Placeholders of the arguments that name a folder.
FOLDERS = {"DIR", "OUT", "IN", "FOLDER", "MODEL_FOLDER", "NEW_MODEL_FOLDER", "MODEL"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print the script that completes these commands in bash or zsh",
        description="Prints a script for the shell, which completes commands, methods, flags, choices, files and "
        "folders. For bash: nnunet-invariance completion bash > ~/.local/share/bash-completion/completions/"
        "nnunet-invariance. For zsh: write it to a file _nnunet-invariance in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=["bash", "zsh"], help="the shell")


def run(args: argparse.Namespace) -> int:
    """Print the script; returns the exit status."""
    from nnunet_invariance.cli.main import load_commands, make_parser

    shtab = _import_shtab()
    parser = make_parser(load_commands())
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _import_shtab() -> ModuleType:
    try:
        return importlib.import_module("shtab")
    except ModuleNotFoundError as error:
        msg = f"`completion` needs shtab, which is not installed. Run `{install_command('completion')}`."
        raise MissingPackageError(msg) from error


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of the parsers of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
