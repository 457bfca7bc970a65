"""``nnunet-invariance translate``: predict images of missing modalities from the available ones."""

import argparse
from pathlib import Path

from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.common.wording import counted


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
    )
    _add_dataset(train)
    train.add_argument(
        "--initial-weights", default="", metavar="FILE", help="other checkpoint of pretrain puir, or 'none'"
    )
    train.add_argument("--epochs", type=int, default=200, help="number of epochs")
    train.add_argument(
        "--iterations", type=int, default=250, help="steps per epoch; the state is saved after each epoch"
    )
    train.add_argument("--seed", type=int, default=0, help="seed of sampling and augmentation")
    train.add_argument("--c", action="store_true", help="continue the last run")
    train.add_argument(
        "--set", nargs="+", default=[], dest="settings", metavar="KEY=VALUE", help="options, see docs/puir.md"
    )
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


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="name or id of the dataset")
    parser.add_argument("configuration", help="configuration of the plans, for example 3d_fullres")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="device of the network")


def _add_images(parser: argparse.ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("-i", dest="images", type=Path, required=True, metavar="IN", help="folder with CASE_0000, ...")
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="OUT", help="output folder")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the checkpoint of translate train")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status (143 after SIGTERM)."""
    from nnunet_invariance.modality_translation.translator import checkpoint_of, load_translator
    from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset

    planned = open_planned_dataset(args.dataset, args.configuration, args.plans)
    if args.step == "train":
        from nnunet_invariance.modality_translation.train import train_translator
        from nnunet_invariance.pretraining import LoopOptions, PretrainingStopped, PUIRTranslationOptions
        from nnunet_invariance.pretraining.engine.settings import parse_settings

        settings = parse_settings(args.settings, PUIRTranslationOptions)
        loop = {"epochs": args.epochs, "iterations": args.iterations, "seed": args.seed, **settings.loop}
        try:
            path = train_translator(
                planned, args.device, args.c, args.initial_weights, settings.method, LoopOptions(**loop)
            )
        except PretrainingStopped as stopped:
            print(stopped)
            return 143
        print(f"finished: {path}")
        return 0
    translator = load_translator(planned, args.checkpoint, args.device)
    if args.step == "predict":
        from nnunet_invariance.modality_translation.predict import translate_folder

        number = translate_folder(translator, args.images, args.out, args.sources, args.targets, args.keep)
        print(f"finished: {counted(number, 'case')} in {args.out}")
        return 0
    from nnunet_invariance.evaluation.protocols.missing_modality import choose_subsets
    from nnunet_invariance.modality_translation.evaluate import evaluate_translation, seen_cases

    names = planned.channel_names
    subsets = choose_subsets(names, args.sources) if args.sources else [(c,) for c in range(len(names))]
    seen = seen_cases(checkpoint_of(planned, args.checkpoint))
    print(f"written: {evaluate_translation(translator, args.images, args.out, subsets, seen)}")
    return 0
