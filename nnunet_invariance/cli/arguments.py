"""Arguments that several commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_invariance.pretraining.engine.options import LoopOptions


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number with a lower bound.

    >>> at_least(1)("3")
    3
    """

    def convert(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r}, expected a whole number of at least {least}")
        return int(word)

    return convert


def add_model_arguments(parser: argparse.ArgumentParser, out: str, out_help: str) -> None:
    """Add the arguments of a command that reads a trained model and images.

    Args:
        out: placeholder of ``-o`` in the help.
        out_help: what is said about ``-o``.
    """
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL_FOLDER", help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")
    add("-i", dest="images", type=Path, required=True, metavar="IN", help="folder with CASE_0000, CASE_0001, ...")
    add("-o", dest="out", type=Path, required=True, metavar=out, help=out_help)
    add("-f", dest="folds", nargs="+", default=[], metavar="FOLD", help="folds of the model (default: all that exist)")
    add("-chk", dest="checkpoint", default="checkpoint_final.pth", metavar="NAME", help="checkpoint of every fold")
    add("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="device of the network")


def add_loop_arguments(parser: argparse.ArgumentParser, epochs: int, seeded: str, listed: str) -> None:
    """Add the arguments of a run of the pre-training loop; one that is not given is None, so that ``--c`` can tell.

    Args:
        epochs: default number of epochs, for the help.
        seeded: what the seed determines.
        listed: where the options of ``--set`` are listed.
    """
    add, defaults = parser.add_argument, LoopOptions()
    add("-device", choices=["cuda", "cpu", "mps"], help="device of the training (default: cuda)")
    add("--epochs", type=int, help=f"number of epochs (default: {epochs})")
    steps = "steps per epoch; the state is saved after each epoch"
    add("--iterations", type=int, help=f"{steps} (default: {defaults.iterations})")
    add("--seed", type=int, help=f"seed of {seeded} (default: {defaults.seed})")
    add("--tensorboard", action="store_true", default=None, help="also write the curves for TensorBoard")
    add_continue(parser)
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help=f"options, listed {listed}",
    )


def add_continue(parser: argparse.ArgumentParser) -> None:
    """Add ``--c``."""
    words = "continue the last run with its own settings; no flag needs to be repeated"
    parser.add_argument("--c", action="store_true", help=words)


def given_loop(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the loop that were given by flags of their own."""
    given = {name: getattr(args, name) for name in ("epochs", "iterations", "seed")}
    return {name: value for name, value in given.items() if value is not None}
