"""``nnunet-invariance weights``: list, inspect, import, export and plan with pre-trained weights."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.closing import finish, train_command
from nnunet_invariance.errors import OptionError
from nnunet_invariance.weights.importers.registry import IMPORTERS

FILE = {"type": Path, "metavar": "FILE", "help": "a path, or hf:OWNER/NAME/FILE on the Hugging Face hub"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its five actions and their arguments."""
    parser = subparsers.add_parser("weights", help="list, inspect, import, export and plan with pre-trained weights")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list the shipped files and the pre-trainings below nnUNet_results")
    inspect = actions.add_parser("inspect", help="show what a checkpoint of any tool contains, and verify its checksum")
    inspect.add_argument("file", **FILE)
    _add_import(actions)
    _add_export(actions)
    _add_plan(actions)


def _add_import(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser("import", help="convert a file of another tool to a checkpoint that our trainers read")
    parser.add_argument("importer", choices=list(IMPORTERS), help="format of FILE; `weights inspect FILE` names it")
    parser.add_argument("file", **FILE)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="default: FILE with the suffix .safetensors")
    parser.add_argument("--plans", type=Path, metavar="JSON", help="plans file, required for the importer `encoder`")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="of --plans; default: 3d_fullres")


def _add_export(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser("export", help="write a file or folder for other tools")
    parser.add_argument("file", **FILE)
    parser.add_argument("out", type=Path, metavar="OUT", help="for example alice.pth; a folder for --format card")
    parser.add_argument(
        "--format", choices=["nnunet", "nnssl", "card"], required=True, help="for which tool; card: a folder to publish"
    )
    parser.add_argument(
        "--branch", choices=["teacher", "student"], help="default: the teacher of a run of 5,000 steps or more"
    )
    parser.add_argument(
        "--random-decoder", action="store_true", help="fill a decoder that was not pre-trained with random weights"
    )


def _add_plan(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser("plan", help="write a copy of plans whose trainers start from a checkpoint")
    parser.add_argument("dataset", metavar="DATASET", help="name or id")
    parser.add_argument("file", nargs="?", **FILE)
    parser.add_argument("--preset", choices=["nnformer"], help="instead of FILE: a network to pre-train from scratch")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default: 3d_fullres")
    parser.add_argument(
        "--keep",
        choices=["plans", "checkpoint"],
        default="plans",
        help="which architecture, patch size, spacing and normalisation the copy has; default: plans",
    )
    parser.add_argument(
        "--min-coverage",
        type=float,
        default=1.0,
        metavar="X",
        help="minimum share of the encoder stages that FILE must fill completely; default: 1",
    )
    parser.add_argument(
        "--frozen-features",
        action="store_true",
        help="for an anatomix U-Net: append its frozen features to the image as input of the planned network",
    )
    parser.add_argument("--name", metavar="NEW", help="name of the copy; default: PLANS_METHOD")


def run(args: argparse.Namespace) -> int:
    """Run the action; returns the exit status."""
    actions = {"list": _list, "inspect": _inspect, "import": _import, "export": _export, "plan": _plan}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.inspection import list_weights
    from nnunet_invariance.weights.locate import results_are_set

    listed = list_weights()
    for item in listed:
        print(f"{item.dataset}  {item.run}  {item.state}\n  {item.file}")
        if item.card:
            print(f"  {item.card}")
    then = "weights inspect FILE, or weights plan DATASET FILE"
    if not results_are_set():
        print("nnUNet_results is not set, therefore no pre-training is listed.")
    elif all(item.dataset == "shipped" for item in listed):
        print("No pre-training below nnUNet_results.")
        then = "pretrain METHOD DATASET CONFIGURATION"
    print(f"next: nnunet-invariance {then}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.hub import local_file
    from nnunet_invariance.weights.inspection import inspect

    found = inspect(local_file(args.file))
    print(found.to_text())
    if found.method:  # a file of another tool: the text ends with the command that imports it
        print(f"next: nnunet-invariance weights plan DATASET {args.file}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from nnunet_invariance.common.json_files import read_json
    from nnunet_invariance.weights.checkpoint import SUFFIX
    from nnunet_invariance.weights.hub import local_file
    from nnunet_invariance.weights.importers.importing import import_foreign
    from nnunet_invariance.weights.importers.registry import get_importer
    from nnunet_invariance.weights.inspection import inspect

    plans = read_json(args.plans, remedy="Give the plans that nnU-Net wrote.", form=dict) if args.plans else None
    file = local_file(args.file)
    # A file of the hub is in the hub's cache, which is not the place for our file.
    default = None if file == args.file else Path(file.stem + SUFFIX)
    out = import_foreign(file, args.out or default, args.importer, plans, args.configuration)
    use = getattr(get_importer(args.importer), "USE", "weights plan DATASET {file}").format(file=out)
    print(inspect(out).to_text())
    return finish(out, f"nnunet-invariance {use}")


def _export(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.hub import local_file
    from nnunet_invariance.weights.model_card import export_card
    from nnunet_invariance.weights.nnssl_export import export_nnssl
    from nnunet_invariance.weights.nnunet_export import export_nnunet

    if args.random_decoder and args.format != "nnunet":
        msg = f"--random-decoder applies to --format nnunet only; the format {args.format} needs no decoder. "
        raise OptionError(msg + "Remove --random-decoder.")
    file = local_file(args.file)
    if args.format == "card":
        card = export_card(file, args.out, args.branch)
        return finish(card, f"read {card}, then: hf upload OWNER/NAME {args.out}")
    if args.format == "nnssl":
        print(export_nnssl(file, args.out, args.branch).to_text())
        return finish(args.out, f"fine-tune from {args.out} with the commands of nnssl")
    print(export_nnunet(file, args.out, args.branch, args.random_decoder).to_text())
    return finish(args.out, f"nnUNetv2_train DATASET CONFIGURATION 0 -pretrained_weights {args.out}")


def _plan_preset(args: argparse.Namespace) -> int:
    from nnunet_invariance.plans.copies import preprocessing_command
    from nnunet_invariance.plans.nnformer import write_nnformer_plans

    path = write_nnformer_plans(args.dataset, args.plans, args.configuration, args.name)
    command = preprocessing_command(args.dataset, path.stem, args.configuration)
    words = f"{args.dataset} {args.configuration} -p {path.stem}"
    return finish(path, f"nnunet-invariance pretrain alice {words}", command)


def _plan(args: argparse.Namespace) -> int:
    from nnunet_invariance.plans.copies import preprocessing_command
    from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
    from nnunet_invariance.weights.hub import local_file

    if (args.file is None) == (args.preset is None):
        raise OptionError("`weights plan` needs either FILE or --preset, and not both. Give one of them.")
    if args.preset:
        return _plan_preset(args)
    fitted = fit_plans_to_checkpoint(
        args.dataset,
        local_file(args.file),
        args.plans,
        args.configuration,
        args.name,
        args.keep,
        args.min_coverage,
        args.frozen_features,
    )
    print("\n".join(fitted.decisions))
    command = preprocessing_command(args.dataset, fitted.path.stem, args.configuration)
    where = (args.dataset, args.configuration, fitted.path.stem)
    return finish(fitted.path, train_command(fitted.trainer, *where), command)
