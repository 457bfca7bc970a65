"""``nnunet-invariance weights``: list, inspect, import, export and plan with pre-trained weights."""

import argparse
from pathlib import Path

from nnunet_invariance.errors import OptionError

IMPORTERS = (
    "alice", "nnssl", "nnunet", "anatomix", "anatomix-dev", "anatomix-dev-vit", "sam", "puir-swin", "voco",
    "monai-swin", "encoder",
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb, its five actions and their flags."""
    parser = subparsers.add_parser("weights", help="list, inspect, import, export and plan with pre-trained weights")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    actions.add_parser("list", help="the pre-trainings below nnUNet_results")

    inspect = actions.add_parser("inspect", help="what a checkpoint is, ours or another tool's; verifies its checksum")
    inspect.add_argument("file", type=Path, metavar="FILE", help="a path, or hf:OWNER/NAME/FILE of the hub")

    take = actions.add_parser("import", help="make another tool's file a checkpoint that our trainers take")
    take.add_argument("importer", choices=IMPORTERS, help="whose file it is; `inspect` says which")
    take.add_argument("file", type=Path, metavar="FILE", help="a path, or hf:OWNER/NAME/FILE of the hub")
    take.add_argument("out", type=Path, nargs="?", metavar="OUT", help="default: FILE with the suffix .safetensors")
    take.add_argument("--plans", type=Path, metavar="JSON", help="plans file of a bare encoder")
    take.add_argument("-c", dest="configuration", default="3d_fullres", help="of --plans; default: 3d_fullres")

    export = actions.add_parser("export", help="write a file or folder for other tools")
    export.add_argument("file", type=Path, metavar="FILE", help="a path, or hf:OWNER/NAME/FILE of the hub")
    export.add_argument("out", type=Path, metavar="OUT", help="for example alice.pth; a folder for --format card")
    export.add_argument("--format", choices=["nnunet", "nnssl", "card"], required=True)
    export.add_argument("--branch", choices=["teacher", "student"], help="default: teacher where there is one")
    export.add_argument(
        "--random-decoder", action="store_true", help="fill a decoder that was not pre-trained with random weights"
    )

    plan = actions.add_parser("plan", help="write a plans copy whose trainers start from a checkpoint")
    plan.add_argument("dataset", metavar="DATASET", help="name or id")
    plan.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a path, or hf:OWNER/NAME/FILE of the hub")
    plan.add_argument("--preset", choices=["nnformer"], help="in place of FILE: a network to pre-train from the start")
    plan.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    plan.add_argument("-c", dest="configuration", default="3d_fullres", help="default: 3d_fullres")
    plan.add_argument(
        "--keep",
        choices=["plans", "checkpoint"],
        default="plans",
        help="whose architecture, patch, spacing and normalisation the copy has; default: plans",
    )
    plan.add_argument(
        "--min-coverage", type=float, default=1.0, metavar="X", help="least share of the encoder from FILE; default: 1"
    )
    plan.add_argument(
        "--frozen-features",
        action="store_true",
        help="of an anatomix U-Net: its frozen features beside the image in front of the planned network",
    )
    plan.add_argument("--name", metavar="NEW", help="name of the plans copy; default: PLANS_METHOD")


def run(args: argparse.Namespace) -> int:
    """Run the action; returns the exit status."""
    actions = {"list": _list, "inspect": _inspect, "import": _import, "export": _export, "plan": _plan}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.inspect import list_pretrainings

    rows = list_pretrainings()
    for row in rows:
        print(f"{row['dataset']}  {row['run']}  {row['state']}\n  {row['file']}")
    if not rows:
        print(
            "No pre-training below nnUNet_results. Start one: nnunet-invariance pretrain METHOD DATASET CONFIGURATION"
        )
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.hub import local_file
    from nnunet_invariance.weights.inspect import describe_text

    print(describe_text(local_file(args.file)))
    return 0


def _import(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.checkpoint import SUFFIX
    from nnunet_invariance.weights.hub import local_file
    from nnunet_invariance.weights.importers.importing import import_foreign, read_plans
    from nnunet_invariance.weights.inspect import describe_text

    plans = read_plans(args.plans) if args.plans else None
    file = local_file(args.file)
    beside = None if file == args.file else Path(file.stem + SUFFIX)  # of a hub's file, not in the hub's cache
    out = import_foreign(file, args.out or beside, args.importer, plans, args.configuration)
    print(describe_text(out))
    use = f"weights plan DATASET {out}"
    if args.importer == "sam":
        use = f"pretrain sam DATASET CONFIGURATION --set backbone=resnet start={out}"
    print(f"written: {out}\nuse it: nnunet-invariance {use}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from nnunet_invariance.weights.export import export_nnunet
    from nnunet_invariance.weights.export_nnssl import export_nnssl
    from nnunet_invariance.weights.hub import local_file
    from nnunet_invariance.weights.model_card import export_card

    if args.random_decoder and args.format != "nnunet":
        raise OptionError(f"--random-decoder is for --format nnunet; {args.format} needs no decoder. Leave it away.")
    file = local_file(args.file)
    if args.format == "card":
        print(f"written: {export_card(file, args.out, args.branch)}")
        return 0
    if args.format == "nnssl":
        print(export_nnssl(file, args.out, args.branch).to_text())
        print(f"written: {args.out}")
        return 0
    print(export_nnunet(file, args.out, args.branch, args.random_decoder).to_text())
    print(f"written: {args.out}\nuse it: nnUNetv2_train DATASET CONFIGURATION FOLD -pretrained_weights {args.out}")
    return 0


def _plan_preset(args: argparse.Namespace) -> int:
    from nnunet_invariance.plans.copies import preprocessing_command
    from nnunet_invariance.plans.nnformer import write_nnformer_plans

    path = write_nnformer_plans(args.dataset, args.plans, args.configuration, args.name)
    print(f"plans copy: {path}")
    command = preprocessing_command(args.dataset, path.stem, args.configuration)
    if command:
        print(f"preprocess first: {command}")
    words = f"{args.dataset} {args.configuration} -p {path.stem}"
    print(f"pre-train: nnunet-invariance pretrain alice {words}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from nnunet_invariance.plans.copies import preprocessing_command
    from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
    from nnunet_invariance.weights.hub import local_file

    if (args.file is None) == (args.preset is None):
        raise OptionError("weights plan needs either FILE or --preset. Give one of them.")
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
    if command:
        print(f"preprocess first: {command}")
    print(f"train: nnUNetv2_train {args.dataset} {args.configuration} FOLD -p {fitted.path.stem} -tr {fitted.trainer}")
    return 0
