"""Arguments that several commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path


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
