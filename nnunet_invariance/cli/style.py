"""``nnunet-invariance style``: preparation of the training for an unseen modality."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.cli.arguments import add_continue
from nnunet_invariance.cli.closing import finish, train_command
from nnunet_invariance.cli.help import ShowDefaults
from nnunet_invariance.common.options import Options
from nnunet_invariance.common.wording import counted

#: Defaults of the two trainings.
TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "dreambooth": {
        "steps": 30_000,
        "learning_rate": 2e-6,
        "batch_size": 1,
        "grad_accum_steps": 2,
        "drop_prompt": 0.0,
        "save_every": 500,
        "seed": 0,
    },
    "controlnet": {
        "steps": 20_000,
        "learning_rate": 1e-5,
        "batch_size": 1,
        "grad_accum_steps": 8,
        "drop_prompt": 0.1,
        "save_every": 500,
        "seed": 0,
    },
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command, its actions and their flags."""
    parser = subparsers.add_parser("style", help="prepare the training of ICMSegTrainer for an unseen modality")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    plan = actions.add_parser("plan", help="write a plans copy with z-score instead of CT normalisation")
    plan.add_argument("dataset", metavar="DATASET", help="name or id")
    _add_plans(plan)
    plan.add_argument("--name", metavar="NEW", help="name of the plans copy; default: PLANS_zscore")
    _add_slices(actions)
    _add_training(actions, "dreambooth", "train the U-Net on the slices")
    _add_training(actions, "controlnet", "train a ControlNet on the labels")
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


def _add_training(actions: argparse._SubParsersAction, name: str, words: str) -> None:
    """Add a training, whose flags are None if they are not given, so that ``--c`` can tell."""
    parser, defaults = _folder_parser(actions, name, words), TRAININGS[name]

    def add(flag: str, kind: Callable[[str], object], words: str) -> None:
        default = defaults[flag.removeprefix("--").replace("-", "_")]
        parser.add_argument(flag, type=kind, help=f"{words} (default: {default})")

    parser.add_argument("--base", type=Path, metavar="MODEL", help="folder of a model such as Stable Diffusion")
    if name == "dreambooth":
        parser.add_argument("--prompt", help="plane and anatomy without the modality, for example 'axial abdomen'")
    else:
        extras = "conditions in addition to the labels: body clusters edges"
        parser.add_argument("--conditions", nargs="*", metavar="EXTRA", help=extras)
    add("--steps", int, "steps of the optimiser")
    add("--learning-rate", float, "learning rate of AdamW")
    add("--batch-size", int, "slices per pass")
    add("--grad-accum-steps", int, "passes per step")
    add("--drop-prompt", float, "fraction of slices with an empty prompt")
    add("--save-every", int, "steps between two saved states")
    add_continue(parser)
    parser.add_argument("--amp", choices=["no", "fp16", "bf16"], help="mixed precision (default: no)")
    add("--seed", int, "random seed")
    parser.add_argument("-device", choices=["cuda", "cpu"], help="device (default: cuda)")


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
    add("--amp", choices=["no", "fp16", "bf16"], default="no", help="mixed precision")
    add("--seed", type=int, default=0, help="random seed")
    add("-device", choices=["cuda", "cpu"], default="cuda", help="device")


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
    command = preprocessing_command(args.dataset, path.stem, args.configuration)
    return finish(path, train_command("ICMSegTrainer", args.dataset, args.configuration, path.stem), command)


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


def _options(kind: type[Options], args: argparse.Namespace) -> dict[str, Any]:
    return {option.name: getattr(args, option.name) for option in kind.describe()}


def _dreambooth(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.dreambooth import FOLDER, train_dreambooth

    chosen, options = _training(args, FOLDER, "base", "prompt")
    where = (args.folder, chosen["base"], chosen["prompt"])
    path = train_dreambooth(*where, options, chosen["device"], args.c, args.command_line)
    return finish(path, f"nnunet-invariance style controlnet {args.folder} --base {chosen['base']}")


def _controlnet(args: argparse.Namespace) -> int:
    from nnunet_invariance.diffusion.controlnet import FOLDER, train_controlnet

    chosen, options = _training(args, FOLDER, "base")
    where = (args.folder, chosen["base"], options, chosen["conditions"])
    path = train_controlnet(*where, chosen["device"], args.c, args.command_line)
    return finish(path, f"nnunet-invariance style generate {args.folder} --base {chosen['base']} --styles T1MRI T2MRI")


def _training(args: argparse.Namespace, folder: str, *required: str) -> tuple[dict[str, Any], Any]:
    """The settings of a training and its options: given, of the training that ``--c`` continues, or defaults."""
    from nnunet_invariance.diffusion.options import TrainingOptions
    from nnunet_invariance.diffusion.record import continued_settings
    from nnunet_invariance.errors import OptionError

    names = {"base", "prompt", "conditions", "device", *(option.name for option in TrainingOptions.describe())}
    chosen = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if args.c:
        chosen = continued_settings(args.folder / folder, chosen)
    if missing := [f"--{name}" for name in required if name not in chosen]:
        raise OptionError(f"style {args.action} needs {' and '.join(missing)}. Only --c takes them from the last run.")
    chosen = {"conditions": [], "device": "cuda", **TRAININGS[args.action], **chosen}
    options = {option.name: chosen[option.name] for option in TrainingOptions.describe() if option.name in chosen}
    return chosen, TrainingOptions(**options)


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
