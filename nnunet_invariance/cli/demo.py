"""``nnunet-invariance demo``: one method end to end on synthetic data."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.closing import finish
from nnunet_invariance.demo.run import DEMOS, run_demo


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "demo",
        help="run one method end to end on synthetic data; writes one HTML page",
        description="Creates a small data set, plans, trains with and without the method, predicts and scores, in "
        "about five minutes on two CPU cores, and writes index.html. It shows the pipeline and does not measure the "
        "method.",
    )
    parser.add_argument("method", nargs="?", choices=list(DEMOS), default="alice", help="the method (default: alice)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nnunet_invariance_demo"),
        metavar="DIR",
        help="folder for everything; an earlier demo in it is replaced (default: nnunet_invariance_demo)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    print("loading nnU-Net ...", flush=True)
    page = run_demo(args.method, args.out)
    return finish(page, f"open {page} in a browser; it ends with the commands for your data, as above")
