"""``nnunet-invariance adapt``: adapt the norms of a trained model to images without labels."""

import argparse

from nnunet_invariance.cli.arguments import add_model_arguments
from nnunet_invariance.cli.closing import finish
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.common.wording import counted


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "adapt",
        help="adapt a trained model to images of another contrast, without labels",
        description="Changes the weights of the normalisation layers of a trained model, of any trainer, until the "
        "predictions for two random styles of the same patch agree, and writes a new model folder, which "
        "nnUNetv2_predict_from_modelfolder and nnunet-invariance predict read. A step costs a forward and a backward "
        "pass of two patches.",
        formatter_class=ShowDefaults,
    )
    add_model_arguments(parser, "NEW_MODEL_FOLDER", "it must be empty or not exist")
    add = parser.add_argument
    add("--steps", type=int, default=5, metavar="N", help="steps for each case")
    add("--lr", type=float, default=1e-3, help="learning rate")
    add("--seed", type=int, default=0, help="seed of the patches and of the styles")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from nnunet_invariance.plans.preflight import check_device
    from nnunet_invariance.prediction import AdaptationOptions, adapt_model

    check_device(args.device)
    options = AdaptationOptions(steps=args.steps, lr=args.lr, seed=args.seed)
    report = adapt_model(args.model, args.images, args.out, options, args.folds, args.checkpoint, args.device)
    written = (
        f"{args.out}, adapted {report.parameters} parameters to {counted(report.cases, 'case')} in "
        f"{report.seconds:.0f} s; disagreement {report.losses[0]:.4f} in the first step, {report.losses[-1]:.4f} in "
        "the last"
    )
    return finish(written, f"nnunet-invariance predict {args.out} -i {args.images} -o OUT")
