"""``nnunet-invariance translate``: predict images of missing modalities from the available ones."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_invariance.cli.arguments import add_loop_arguments, given_loop
from nnunet_invariance.cli.closing import finish
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.cli.setting_help import SettingHelp, describe_settings
from nnunet_invariance.common.wording import counted

if TYPE_CHECKING:
    from nnunet_invariance.nnunet.planned_dataset import PlannedDataset

#: Default number of epochs of ``translate train``.
EPOCHS = 200


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its three subcommands and their flags."""
    parser = subparsers.add_parser("translate", help="modality translation: train, predict, evaluate")
    steps = parser.add_subparsers(dest="step", required=True)
    train = steps.add_parser(
        "train",
        help="train a network that predicts all modalities from any subset",
        description="Trains PUIR's network with nnU-Net's decoder to predict all modalities from any subset, on the "
        "preprocessed cases of a dataset. Starts from the checkpoint of `pretrain puir` with the same plans.",
        formatter_class=ShowDefaults,
        add_help=False,
    )
    train.add_argument("-h", "--help", action=SettingHelp, settings=_train_help)
    _add_dataset(train)
    train.add_argument("--initial-weights", metavar="FILE", help="other checkpoint of pretrain puir, or 'none'")
    add_loop_arguments(train, EPOCHS, "sampling and augmentation", "below; docs/puir.md explains them")
    predict = steps.add_parser("predict", help="write the missing modalities of each case")
    _add_images(predict)
    predict.add_argument(
        "--from", nargs="+", default=[], dest="sources", metavar="NAME", help="source modalities; default: all present"
    )
    predict.add_argument(
        "--to", nargs="+", default=[], dest="targets", metavar="NAME", help="target modalities; default: all others"
    )
    predict.add_argument("--keep", action="store_true", help="also copy the source images to OUT")
    evaluate = steps.add_parser("evaluate", help="PSNR, NMSE and SSIM from each modality to each other")
    _add_images(evaluate)
    single = "sets of source modalities, joined by +; default: each modality alone"
    evaluate.add_argument("--from", nargs="+", dest="sources", metavar="A+B", help=single)


def _train_help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslation

    return f"{parser.format_help()}\n{describe_settings(PUIRTranslation, {'epochs': EPOCHS})}\n"


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="name or id of the dataset")
    parser.add_argument("configuration", help="configuration of the plans, for example 3d_fullres")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")


def _add_images(parser: argparse.ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="device of the network")
    parser.add_argument("-i", dest="images", type=Path, required=True, metavar="IN", help="folder with CASE_0000, ...")
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="OUT", help="output folder")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the checkpoint of translate train")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status (143 after SIGTERM)."""
    from nnunet_invariance.modality_translation.translator import checkpoint_of, load_translator
    from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
    from nnunet_invariance.plans.preflight import check_device

    if args.step != "train":
        check_device(args.device)
    planned = open_planned_dataset(args.dataset, args.configuration, args.plans)
    if args.step == "train":
        return _train(args, planned)
    translator = load_translator(planned, args.checkpoint, args.device)
    if args.step == "predict":
        from nnunet_invariance.modality_translation.predict import translate_folder

        number = translate_folder(translator, args.images, args.out, args.sources, args.targets, args.keep)
        written = f"{counted(number, 'case')} in {args.out}"
        return finish(written, f"nnunet-invariance translate evaluate {_where(args)} -i IN -o OUT")
    from nnunet_invariance.evaluation.protocols.missing_modality import choose_subsets
    from nnunet_invariance.modality_translation.evaluate import evaluate_translation, seen_cases

    names = planned.channel_names
    subsets = choose_subsets(names, args.sources) if args.sources else [(c,) for c in range(len(names))]
    seen = seen_cases(checkpoint_of(planned, args.checkpoint))
    page = evaluate_translation(translator, args.images, args.out, subsets, seen)
    return finish(page, f"open {page} in a browser")


def _where(args: argparse.Namespace) -> str:
    """The arguments that name data set, configuration and plans."""
    plans = "" if args.plans == "nnUNetPlans" else f" -p {args.plans}"
    return f"{args.dataset} {args.configuration}{plans}"


def _train(args: argparse.Namespace, planned: "PlannedDataset") -> int:
    from nnunet_invariance.modality_translation.train import train_translator
    from nnunet_invariance.pretraining import LoopOptions, PretrainingStopped, PUIRTranslationOptions
    from nnunet_invariance.pretraining.engine.record import RunSettings, continued_settings
    from nnunet_invariance.pretraining.engine.settings import parse_settings
    from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslation
    from nnunet_invariance.weights.locate import pretraining_folder

    settings = parse_settings(args.settings, PUIRTranslationOptions)
    if args.initial_weights is not None:
        settings.method["initial_weights"] = args.initial_weights
    given_options = {**given_loop(args), **settings.loop}
    chosen = RunSettings(device=args.device, tensorboard=args.tensorboard, loop=given_options, options=settings.method)
    if args.c:
        names = (planned.name, planned.plans.plans_name, planned.configuration_name)
        chosen = continued_settings(pretraining_folder(PUIRTranslation.name, *names), PUIRTranslation, chosen)
    options = dict(chosen.options)
    weights, loop = options.pop("initial_weights", ""), LoopOptions(**{"epochs": EPOCHS, **chosen.loop})
    try:
        path = train_translator(
            planned,
            chosen.device or "cuda",
            args.c,
            weights,
            options,
            loop,
            bool(chosen.tensorboard),
            args.command_line,
        )
    except PretrainingStopped as stopped:
        print(stopped)
        return 143
    return finish(path, f"nnunet-invariance translate predict {_where(args)} -i IN -o OUT")
