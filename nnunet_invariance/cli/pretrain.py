"""``nnunet-invariance pretrain``: pre-train an encoder on unlabelled volumes."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_invariance.cli.arguments import add_loop_arguments, given_loop
from nnunet_invariance.cli.closing import finish, train_command
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.cli.setting_help import SettingHelp, describe_settings
from nnunet_invariance.errors import OptionError
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.registry import Flag, MethodEntry, pretrain_methods

if TYPE_CHECKING:
    from nnunet_invariance.pretraining.engine.record import RunSettings


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its flags, and the flags of the methods."""
    known = pretrain_methods()
    own_images = ", ".join(name for name, entry in known.items() if not entry.reads_cases)
    parser = subparsers.add_parser(
        "pretrain",
        help="pre-train a network on a dataset's preprocessed cases and on unlabelled scans, or on synthetic ones",
        description="Pre-trains the network that nnU-Net planned, without labels. Reads the cases that nnU-Net has "
        f"preprocessed, and any folders given with --images ({own_images}: makes its own images and reads none). "
        "Writes its checkpoint to nnUNet_results/DATASET/pretraining/, where the trainers find it. Without a dataset: "
        "pretrain METHOD --network NAME --out DIR. `pretrain METHOD --help` lists the options of a method.",
        formatter_class=ShowDefaults,
        add_help=False,
    )
    _add_arguments(parser, known)


def _add_arguments(parser: argparse.ArgumentParser, known: Mapping[str, MethodEntry]) -> None:
    """Add the arguments, with the flags and networks of these methods only."""
    without_dataset = {name: entry.network_presets for name, entry in known.items() if entry.network_presets}
    parser.add_argument("-h", "--help", action=SettingHelp, settings=_help)
    parser.add_argument("method", choices=list(known), help="the method")
    parser.add_argument("dataset", nargs="?", help="name or id of the dataset")
    parser.add_argument("configuration", nargs="?", help="configuration of the plans, for example 3d_fullres")
    if without_dataset:
        networks = "; ".join(f"{name}: {', '.join(presets)}" for name, presets in without_dataset.items())
        parser.add_argument("--network", metavar="NAME", help=f"network of a run without a dataset ({networks})")
        parser.add_argument("--out", type=Path, metavar="DIR", help="folder of a run without a dataset")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    scans = "folders of unlabelled scans, preprocessed under the same plans"
    parser.add_argument("--images", nargs="+", type=Path, metavar="DIR", help=scans)
    listed = "by `pretrain METHOD --help`; docs/pretraining.md explains them"
    add_loop_arguments(parser, LoopOptions().epochs, "initialisation, data and augmentation", listed)
    parser.add_argument(
        "--probe",
        type=int,
        metavar="EPOCHS",
        help="log the Dice of a linear probe on labelled cases of the dataset every EPOCHS epochs (default: 0, never)",
    )
    for flag, owners in _flags(known).items():
        _add_flag(parser, flag, owners)


def _help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The help of the command; with a METHOD, that of the method with all its options."""
    if args.method is None:
        return parser.format_help()
    from nnunet_invariance.pretraining.engine.method import load_method

    entry = pretrain_methods()[args.method]
    kind = load_method(entry)
    own = argparse.ArgumentParser(parser.prog, None, kind.citation, formatter_class=ShowDefaults, add_help=False)
    _add_arguments(own, {args.method: entry})
    return f"{own.format_help()}\n{describe_settings(kind, {})}\n"


def _flags(known: Mapping[str, MethodEntry]) -> dict[Flag, list[str]]:
    """Every flag of these methods, with the methods that have it."""
    owners: dict[Flag, list[str]] = {}
    for name, entry in known.items():
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
    from nnunet_invariance.probing import ProbeCurve

    _check(args)
    chosen = _settings(args)
    given: dict[str, Any] = {
        "options": chosen.options,
        "loop": chosen.loop,
        "device": chosen.device or "cuda",
        "resume": args.c,
        "tensorboard": bool(chosen.tensorboard),
        "command": args.command_line,
    }
    try:
        if args.out:
            path = pretrain_without_dataset(args.method, chosen.network or "", args.out, **given)
        else:
            monitor = ProbeCurve(chosen.probe) if chosen.probe else None
            where = (args.method, args.dataset, args.configuration, args.plans)
            path = pretrain(*where, images=chosen.images or (), monitor=monitor, **given)
    except PretrainingStopped as stopped:
        print(stopped)
        return 143
    return finish(path, _next(args, path))


def _next(args: argparse.Namespace, path: Path) -> str:
    """The training that reads the weights, or the command that prepares it."""
    entry = pretrain_methods()[args.method]
    if entry.trainer and not args.out:
        return train_command(entry.trainer, args.dataset, args.configuration, args.plans)
    names = {"dataset": args.dataset or "DATASET", "configuration": args.configuration, "plans": args.plans}
    return f"nnunet-invariance {entry.next_command.format(file=path, **names)}"


def _settings(args: argparse.Namespace) -> "RunSettings":
    """The settings that were given; with ``--c`` also those of the run that is continued."""
    from nnunet_invariance.pretraining.engine.method import load_method
    from nnunet_invariance.pretraining.engine.record import RunSettings, continued_settings
    from nnunet_invariance.pretraining.engine.settings import parse_settings
    from nnunet_invariance.pretraining.engine.target import run_folder

    kind = load_method(pretrain_methods()[args.method])
    settings = parse_settings(args.settings, kind.options_class)
    given = RunSettings(
        network=args.network,
        images=args.images,
        device=args.device,
        probe=args.probe,
        tensorboard=args.tensorboard,
        loop={**given_loop(args), **settings.loop},
        options={**settings.method, **_given_flags(args)},
    )
    if not args.c:
        return given
    folder = args.out or run_folder(args.method, args.dataset, args.configuration, args.plans)
    return continued_settings(folder, kind, given)


def _given_flags(args: argparse.Namespace) -> dict[str, Any]:
    values = {flag.field: getattr(args, f"flag_{flag.field}") for flag in _flags(pretrain_methods())}
    return {field: value for field, value in values.items() if value is not None}


def _check(args: argparse.Namespace) -> None:
    """Refuse a mixture of the two forms of the command, and flags of another method."""
    for flag, owners in _flags(pretrain_methods()).items():
        if args.method not in owners and getattr(args, f"flag_{flag.field}") is not None:
            raise OptionError(f"{flag.name} is an option of {', '.join(owners)}, not of {args.method}. Omit it.")
    if args.probe is not None and (args.probe < 0 or (args.probe and args.network)):
        msg = f"--probe {args.probe}: expected a whole number of epochs, for a run on a DATASET with labelled cases."
        raise OptionError(f"{msg} Correct or omit it.")
    if args.out and (args.network or args.c) and not args.dataset and not args.images:
        return
    if args.configuration and not args.network and not args.out:
        return
    raise OptionError(
        "pretrain takes either DATASET CONFIGURATION, or --network NAME --out DIR for a network that needs no dataset. "
        f"Found: DATASET {args.dataset}, CONFIGURATION {args.configuration}, --network {args.network}, --out "
        f"{args.out}" + (", --images" if args.images else "") + ". Give one form, and all of it."
    )
