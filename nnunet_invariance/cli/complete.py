"""``nnunet-invariance complete``: fill missing channels with images of zeros."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.closing import finish
from nnunet_invariance.common.wording import counted


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "complete",
        help="fill missing channels with zeros for nnUNetv2_predict",
        description="Copies the images of a folder to OUT and writes an image of zeros, with the geometry of the case, "
        "for each missing channel. Models of PUIRTrainer treat such an image as a missing modality.",
    )
    parser.add_argument("images", type=Path, metavar="IN", help="folder with CASE_0000, CASE_0001, ...")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder; it must be empty or not exist")
    parser.add_argument("-d", dest="dataset", required=True, help="name or id of the dataset")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from nnunet_invariance.nnunet.missing_channels import fill_missing_channels

    done = fill_missing_channels(args.images, args.out, args.dataset)
    for case, channels in done.filled.items():
        print(f"{case}: filled {', '.join(channels)}")
    written = f"{counted(done.cases, 'case')} in {args.out}, {len(done.filled)} of them completed"
    model = f"-d {args.dataset} -c CONFIGURATION -tr PUIRTrainer"
    return finish(written, f"nnUNetv2_predict -i {args.out} -o OUT {model}")
