"""The command line `nnunet-invariance VERB ...`: one file a verb, each with `add_parser(subparsers)` and `run(args)`.

No verb imports torch at module level, so that `--help` answers at once.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from nnunet_invariance import __version__
from nnunet_invariance.errors import InvarianceError

VERBS = (
    "pretrain",
    "synthesize",
    "weights",
    "style",
    "complete",
    "translate",
    "register",
    "probe",
    "evaluate",
    "demo",
    "doctor",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 well, 1 the verb's own finding, 2 a user error, 130 interrupted."""
    verbs = {verb: importlib.import_module(f"nnunet_invariance.cli.{verb}") for verb in VERBS}
    parser = argparse.ArgumentParser(
        prog="nnunet-invariance",
        description="Pre-training for nnU-Net v2, and the tools around it. Training and prediction are nnU-Net's own "
        "commands: nnUNetv2_train DATASET 3d_fullres 0 -tr AliceTrainer",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-invariance {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB")
    for module in verbs.values():
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    if args.verb is None:
        parser.print_help()
        return 0

    logging.basicConfig(format="%(message)s")
    logging.getLogger("nnunet_invariance").setLevel(logging.INFO)
    try:
        return verbs[args.verb].run(args)
    except InvarianceError as error:
        print(f"nnunet-invariance {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet-invariance {args.verb}: interrupted", file=sys.stderr)
        return 130


def entry_point() -> None:
    """The console script."""
    sys.exit(main())
