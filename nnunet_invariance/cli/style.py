"""``nnunet-invariance style``: preparation of the training for an unseen modality."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_invariance.cli.closing import finish, train_command
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.common.options import Options
from nnunet_invariance.common.wording import counted


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its actions and their flags."""
    parser = subparsers.add_parser("style", help="prepare the training of ICMSegTrainer for an unseen modality")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    plan = actions.add_parser("plan", help="write a plans copy with z-score instead of CT normalisation")
    plan.add_argument("dataset", metavar="DATASET", help="name or id")
    _add_plans(plan)
    plan.add_argument("--name", metavar="NEW", help="name of the plans copy; default: PLANS_zscore")
    _add_slices(actions)
    _add_training(actions, "dreambooth", "train the U-Net on the slices", steps=30_000, rate=2e-6, grad_accum_steps=2)
    _add_training(
        actions, "controlnet", "train a ControlNet on the labels", steps=20_000, rate=1e-5, grad_accum_steps=8
    )
    _add_generate(actions)
    preprocess = _folder_parser(
        actions, "preprocess", "preprocess the views and write them beside nnU-Net's preprocessed cases"
    )
    _add_plans(preprocess)
    preview = _folder_parser(actions, "preview", "write a preview image of slices, labels and views")
    preview.add_argument("-n", type=int, default=4, help="number of volumes")


def _add_plans(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default: 3d_fullres")


def _folder_parser(actions: argparse._SubParsersAction, name: str, words: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=words, formatter_class=ShowDefaults)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with slices, networks and views")
    return parser


def _add_slices(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser("slices", help="cut the training cases into square slices")
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="name or id")
    add("folder", type=Path, metavar="FOLDER", help="output folder; the other actions use it")
    add("--size", type=int, default=512, help="pixels, a multiple of 64 for Stable Diffusion; default: 512")
    add("--plane", choices=["axial", "coronal", "sagittal"], help="default: normal to the coarsest axis")
    add(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="default: 1st and 99th percentile of each volume"
    )
    add(
        "--project",
        choices=["mean", "attenuation"],
        help="first project along the normal of the plane (default: coronal)",
    )
    add("--as-dataset", type=int, metavar="ID", help="with --project: id of the data set of projections")


def _add_training(
    actions: argparse._SubParsersAction, name: str, words: str, steps: int, rate: float, grad_accum_steps: int
) -> None:
    parser = _folder_parser(actions, name, words)
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="MODEL", help="folder of a model such as Stable Diffusion")
    if name == "dreambooth":
        add("--prompt", required=True, help="plane and anatomy without the modality, for example 'axial abdomen'")
    else:
        add(
            "--conditions",
            nargs="*",
            default=[],
            metavar="EXTRA",
            help="conditions in addition to the labels: body clusters edges",
        )
    add("--steps", type=int, default=steps, help="steps of the optimiser")
    add("--learning-rate", type=float, default=rate, help="learning rate of AdamW")
    add("--batch-size", type=int, default=1, help="slices per pass")
    add("--grad-accum-steps", type=int, default=grad_accum_steps, help="passes per step")
    dropped = 0.0 if name == "dreambooth" else 0.1
    add("--drop-prompt", type=float, default=dropped, help="fraction of slices with an empty prompt")
    add("--save-every", type=int, default=500, help="steps between two saved states")
    add("--c", dest="resume", action="store_true", help="resume from the last state")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--amp", choices=["no", "fp16", "bf16"], default="no", help="mixed precision")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("-device", choices=["cuda", "cpu"], default="cuda", help="device")


def _add_generate(actions: argparse._SubParsersAction) -> None:
    parser = _folder_parser(actions, "generate", "generate views of all volumes in other styles")
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="MODEL", help="the base model of the trainings")
    add(
        "--styles",
        nargs="+",
        required=True,
        metavar="STYLE",
        help="words appended to the prompt, for example T1MRI T2MRI X-ray",
    )
    add("--prompts", nargs="+", default=[], metavar="PROMPT", help="default: the prompt of the training")
    add("--no-swap", dest="swap", action="store_false", help="use the tuned U-Net (ablation)")
    add(
        "--strength",
        type=float,
        default=0.7,
        help="fraction of the steps that run on the noised source; 1: from noise only",
    )
    add("--noise", default="shared", help="along the slices: shared, autoregressive or independent")
    add("--correlation", type=float, default=0.9, help="correlation of autoregressive noise")
    add("--scheduler", default="ddim", help="ddim or unipc")
    add("--steps", type=int, default=20, help="steps of the scheduler")
    add("--guidance", type=float, default=7.5, help="classifier-free guidance; 1: none")
    add("--control-scale", type=float, default=1.0, help="weight of the ControlNet")
    add("--match", action="store_true", help="smooth mean and s.d. along the slices")
    add("--batch-size", type=int, default=4, help="slices at once")
    _add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Run the action; returns the exit status."""
    actions: dict[str, Callable[[Any], int]] = {
        "plan": _plan,
        "slices": _slices,
        "dreambooth": _dreambooth,
        "controlnet": _controlnet,
        "generate": _generate,
        "preprocess": _preprocess,
        "preview": _preview,
    }
    return actions[args.action](args)


def _plan(args: argparse.Namespace) -> int:
    from nnunet_invariance.plans.copies import preprocessing_command
    from nnunet_invariance.plans.zscore import REASON, write_zscore_plans

    path = write_zscore_plans(args.dataset, args.plans, args.configuration, args.name)
    print(REASON)
    if command := preprocessing_command(args.dataset, path.stem, args.configuration):
        print(f"preprocess first: {command}")
    return finish(path, train_command("ICMSegTrainer", args.dataset, args.configuration, path.stem))


def _slices(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.projection import project_dataset
    from nnunet_invariance.diffusion.slices import make_slices
    from nnunet_invariance.errors import OptionError

    if (args.project is None) != (args.as_dataset is None):
        raise OptionError("--project and --as-dataset ID belong together: projections are a data set of their own.")
    dataset, plane = args.dataset, args.plane
    if args.project is not None:
        dataset, plane = project_dataset(args.dataset, args.as_dataset, args.project, args.plane), None
        print(
            f"projections: {dataset}; plan and preprocess it for 2d: nnUNetv2_plan_and_preprocess -d {args.as_dataset}"
        )
    slices = make_slices(dataset, args.folder, args.size, plane, args.window)
    written = f"slices of {counted(len(slices.names), 'volume')} in {args.folder}"
    return finish(written, f"nnunet-invariance style dreambooth {args.folder} --base MODEL --prompt PROMPT")


def _training_options(args: argparse.Namespace) -> Any:
    from nnunet_invariance.diffusion.options import TrainingOptions

    return TrainingOptions(**_options(TrainingOptions, args))


def _options(kind: type[Options], args: argparse.Namespace) -> dict[str, Any]:
    return {option.name: getattr(args, option.name) for option in kind.describe()}


def _dreambooth(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.dreambooth import train_dreambooth

    path = train_dreambooth(args.folder, args.base, args.prompt, _training_options(args), args.device, args.resume)
    return finish(path, f"nnunet-invariance style controlnet {args.folder} --base {args.base}")


def _controlnet(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.controlnet import train_controlnet

    path = train_controlnet(args.folder, args.base, _training_options(args), args.conditions, args.device, args.resume)
    return finish(path, f"nnunet-invariance style generate {args.folder} --base {args.base} --styles T1MRI T2MRI")


def _generate(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.generate import generate_views
    from nnunet_invariance.diffusion.options import SamplingOptions, ViewOptions

    sampling = SamplingOptions(**_options(SamplingOptions, args))
    options = ViewOptions(sampling, args.swap, args.match, args.seed, args.amp, args.batch_size)
    counts = generate_views(args.folder, args.base, args.styles, options, args.prompts, args.device)
    for view, count in counts.items():
        print(
            f"{view}: {counted(count['volumes'], 'volume')}, {count['rejected']} of {count['slices']} slices rejected",
            end="",
        )
        print(f", {counted(count['left_out'], 'volume')} left out")
    written = f"{counted(len(counts), 'view')} of every volume in {args.folder}"
    return finish(written, f"nnunet-invariance style preview {args.folder}, then style preprocess {args.folder}")


def _preprocess(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.preprocess import preprocess_views

    path = preprocess_views(args.folder, args.plans, args.configuration)
    block = 'with "views_probability": 0.5 in the plans block "nnunet_invariance"'
    return finish(path, f"{train_command('ICMSegTrainer', plans=args.plans)}, {block}")


def _preview(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.preview import write_preview

    path = write_preview(args.folder, args.n)
    return finish(path, f"look at {path}, then: nnunet-invariance style preprocess {args.folder}")
