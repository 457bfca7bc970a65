"""``nnunet-invariance pretrain``: pre-train an encoder on unlabelled volumes."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.errors import OptionError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb and its flags."""
    parser = subparsers.add_parser(
        "pretrain",
        help="pre-train a network on a dataset's preprocessed cases and on unlabelled scans, or on synthetic ones",
        description="Pre-trains the network that nnU-Net planned, without labels. Reads the cases that nnU-Net has "
        "preprocessed, and any folders given with --images; anatomix makes its own images and needs none. Leaves its "
        "checkpoint in nnUNet_results/DATASET/pretraining/, where the trainers find it. Without a dataset: "
        "pretrain anatomix --network anatomix --out DIR.",
        formatter_class=ShowDefaults,
    )
    parser.add_argument("method", choices=["alice", "mae", "anatomix", "puir", "sam"], help="the method")
    parser.add_argument("dataset", nargs="?", help="name or id of the dataset")
    parser.add_argument("configuration", nargs="?", help="configuration of the plans, for example 3d_fullres")
    parser.add_argument("--network", metavar="NAME", help="without a dataset: anatomix, plain4 or plain6")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of a run without a dataset")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of unlabelled scans, preprocessed under the same plans",
    )
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="where to train")
    parser.add_argument("--epochs", type=int, default=400, help="epochs")
    parser.add_argument(
        "--iterations", type=int, default=250, help="steps an epoch; the state is saved after each epoch"
    )
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, data and augmentation")
    parser.add_argument("--c", action="store_true", help="continue the last run")
    parser.add_argument(
        "--pairs",
        choices=["coordinates", "sam", "same-volume", "random"],
        help="alice: how the two crops of a pair are aligned (not given: coordinates); sam: by `pretrain sam`",
    )
    parser.add_argument(
        "--patients",
        metavar="PATTERN",
        help="alice: pattern whose first group is the patient in a case's name; partners are of different patients",
    )
    parser.add_argument("--preview", action="store_true", help="sam: leave preview.png, points and their matches")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="settings of the loop and of the method, see docs/pretraining.md",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit status (143 after SIGTERM)."""
    from nnunet_invariance.pretraining.engine.loop import Stopped
    from nnunet_invariance.pretraining.engine.run import run_preset, run_pretraining

    _check(args)
    words = [f"epochs={args.epochs}", f"iterations={args.iterations}", f"seed={args.seed}", *args.settings]
    flags = {"alignment": args.pairs, "patients": args.patients}
    words += [f"{field}={value}" for field, value in flags.items() if value is not None]
    try:
        if args.network:
            path = run_preset(args.method, args.network, args.out, args.device, args.c, words)
        else:
            path = run_pretraining(
                args.method,
                args.dataset,
                args.configuration,
                args.plans,
                args.images,
                args.device,
                args.c,
                words,
                args.preview,
            )
    except Stopped as stopped:
        print(stopped)
        return 143
    print(f"finished: {path}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what is neither of the two forms of the command, and Alice's flags beside another method."""
    for flag in ("pairs", "patients"):
        if args.method != "alice" and getattr(args, flag) is not None:
            raise OptionError(f"--{flag} is for alice; {args.method} draws no pairs of volumes. Leave it away.")
    if args.network and args.out and not args.dataset and not args.images:
        return
    if args.configuration and not args.network and not args.out:
        return
    raise OptionError(
        "pretrain takes either DATASET CONFIGURATION, or --network NAME --out DIR for a network that needs no dataset. "
        f"Found: DATASET {args.dataset}, CONFIGURATION {args.configuration}, --network {args.network}, --out "
        f"{args.out}" + (", --images" if args.images else "") + ". Give one form, whole."
    )
