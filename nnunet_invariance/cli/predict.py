"""``nnunet-invariance predict``: nnU-Net's prediction, with additions for images that differ from the training's."""

import argparse
import sys
import time

from nnunet_invariance.cli.arguments import add_model_arguments, at_least
from nnunet_invariance.cli.closing import finish
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.common.wording import counted


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "predict",
        help="predict with a trained model: files may be missing, and styles of the images be averaged",
        description="Predicts the images of a folder with a trained model of any trainer, as "
        "nnUNetv2_predict_from_modelfolder does. Files of a case may be missing, or constant images of any value: the "
        "result is that of images of zeros. With --styles N the result is the mean over the image and N random styles "
        "of it, which takes N + 1 times as long. Warns of images whose intensities are far from the training's.",
        formatter_class=ShowDefaults,
    )
    add_model_arguments(parser, "OUT", "output folder")
    add = parser.add_argument
    add("--styles", type=at_least(0), default=0, metavar="N", help="number of random styles of every image")
    add("--seed", type=int, default=0, help="seed of the styles")
    add("--disable_tta", action="store_true", help="predict without mirroring")
    add("--save_probabilities", action="store_true", help="also write the probabilities")
    add("--workers", type=at_least(0), default=3, metavar="N", help="processes for preprocessing and export; 0: none")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import torch

    from nnunet_invariance.plans.preflight import check_device
    from nnunet_invariance.prediction import (
        StylePredictor,
        open_model,
        predict_folder,
        shift_warnings,
        training_intensities,
    )

    check_device(args.device)
    start = time.monotonic()
    predictor = StylePredictor(
        styles=args.styles,
        seed=args.seed,
        use_mirroring=not args.disable_tta,
        device=torch.device(args.device),
        allow_tqdm=sys.stderr.isatty(),  # its bar over windows would fill a log
    )
    open_model(predictor, args.model, args.folds, args.checkpoint)
    training = training_intensities(args.model, predictor.plans_manager, predictor.configuration_manager)
    if training is None:
        print("The intensities are not checked: the preprocessed training cases of the model were not found.")
    cases = predict_folder(predictor, args.images, args.out, args.save_probabilities, args.workers)
    for warning in shift_warnings(cases, predictor.intensities, training):
        print(f"WARNING: {warning}")
    seconds = time.monotonic() - start
    written = f"{counted(len(cases), 'case')} in {args.out}, {seconds:.0f} s, {counted(args.styles, 'style')}"
    files = f"-djfile {args.model / 'dataset.json'} -pfile {args.model / 'plans.json'}"
    return finish(written, f"nnUNetv2_evaluate_folder LABELS {args.out} {files}")
