"""``nnunet-invariance pretrain``: pre-train an encoder on unlabelled volumes."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.errors import OptionError
from nnunet_invariance.registry import Flag, pretrain_methods


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its flags, and the flags of the methods."""
    known = pretrain_methods()
    without_dataset = {name: entry.network_presets for name, entry in known.items() if entry.network_presets}
    networks = "; ".join(f"{name}: {', '.join(presets)}" for name, presets in without_dataset.items())
    own_images = ", ".join(name for name, entry in known.items() if not entry.reads_cases)
    parser = subparsers.add_parser(
        "pretrain",
        help="pre-train a network on a dataset's preprocessed cases and on unlabelled scans, or on synthetic ones",
        description="Pre-trains the network that nnU-Net planned, without labels. Reads the cases that nnU-Net has "
        f"preprocessed, and any folders given with --images ({own_images}: makes its own images and reads none). "
        "Writes its checkpoint to nnUNet_results/DATASET/pretraining/, where the trainers find it. Without a dataset: "
        "pretrain METHOD --network NAME --out DIR.",
        formatter_class=ShowDefaults,
    )
    parser.add_argument("method", choices=list(known), help="the method")
    parser.add_argument("dataset", nargs="?", help="name or id of the dataset")
    parser.add_argument("configuration", nargs="?", help="configuration of the plans, for example 3d_fullres")
    parser.add_argument("--network", metavar="NAME", help=f"network of a run without a dataset ({networks})")
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
    _add_run(parser)
    for flag, owners in _flags().items():
        _add_flag(parser, flag, owners)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="options of the loop and of the method, see docs/pretraining.md",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the loop."""
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="device of the training")
    parser.add_argument("--epochs", type=int, default=400, help="number of epochs")
    parser.add_argument(
        "--iterations", type=int, default=250, help="steps per epoch; the state is saved after each epoch"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initialisation, data and augmentation")
    parser.add_argument(
        "--probe",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="log the Dice of a linear probe on labelled cases of the dataset every EPOCHS epochs; 0: never",
    )
    parser.add_argument("--c", action="store_true", help="continue the last run")


def _flags() -> dict[Flag, list[str]]:
    """Every flag of a method, with the methods that have it."""
    owners: dict[Flag, list[str]] = {}
    for name, entry in pretrain_methods().items():
        for flag in entry.flags:
            owners.setdefault(flag, []).append(name)
    return owners


def _add_flag(parser: argparse.ArgumentParser, flag: Flag, owners: list[str]) -> None:
    kwargs: dict[str, Any] = {"help": f"{', '.join(owners)}: {flag.help}", "default": None}
    if flag.is_switch:
        kwargs["action"] = "store_const"
        kwargs["const"] = True
    elif flag.choices:
        kwargs["choices"] = flag.choices
    else:
        kwargs["metavar"] = flag.metavar
    parser.add_argument(flag.name, dest=f"flag_{flag.field}", **kwargs)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status (143 after SIGTERM)."""
    from nnunet_invariance.pretraining import PretrainingStopped, pretrain, pretrain_without_dataset
    from nnunet_invariance.pretraining.engine.method import load_method
    from nnunet_invariance.pretraining.engine.settings import parse_settings
    from nnunet_invariance.probing import ProbeCurve

    _check(args)
    kind = load_method(pretrain_methods()[args.method])
    settings = parse_settings(args.settings, kind.options_class)
    loop = {"epochs": args.epochs, "iterations": args.iterations, "seed": args.seed, **settings.loop}
    given: dict[str, Any] = {
        "options": {**settings.method, **_given_flags(args)},
        "loop": loop,
        "device": args.device,
        "resume": args.c,
    }
    try:
        if args.network:
            path = pretrain_without_dataset(args.method, args.network, args.out, **given)
        else:
            monitor = ProbeCurve(args.probe) if args.probe else None
            where = (args.method, args.dataset, args.configuration, args.plans)
            path = pretrain(*where, images=args.images, monitor=monitor, **given)
    except PretrainingStopped as stopped:
        print(stopped)
        return 143
    print(f"finished: {path}")
    return 0


def _given_flags(args: argparse.Namespace) -> dict[str, Any]:
    values = {flag.field: getattr(args, f"flag_{flag.field}") for flag in _flags()}
    return {field: value for field, value in values.items() if value is not None}


def _check(args: argparse.Namespace) -> None:
    """Refuse a mixture of the two forms of the command, and flags of another method."""
    for flag, owners in _flags().items():
        if args.method not in owners and getattr(args, f"flag_{flag.field}") is not None:
            raise OptionError(f"{flag.name} is an option of {', '.join(owners)}, not of {args.method}. Omit it.")
    if args.probe < 0 or (args.probe and args.network):
        msg = f"--probe {args.probe}: expected a whole number of epochs, for a run on a DATASET with labelled cases."
        raise OptionError(f"{msg} Correct or omit it.")
    if args.network and args.out and not args.dataset and not args.images:
        return
    if args.configuration and not args.network and not args.out:
        return
    raise OptionError(
        "pretrain takes either DATASET CONFIGURATION, or --network NAME --out DIR for a network that needs no dataset. "
        f"Found: DATASET {args.dataset}, CONFIGURATION {args.configuration}, --network {args.network}, --out "
        f"{args.out}" + (", --images" if args.images else "") + ". Give one form, and all of it."
    )
