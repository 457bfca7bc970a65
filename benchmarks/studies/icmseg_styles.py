"""ICMSeg on real data: which style intervention generalises to another contrast or modality, and does InfoNCE help?

    python -m benchmarks.studies.icmseg_styles --data DIR --work DIR [--sets hippocampus ...] [--seeds 3] [-device cpu]

There are four data sets, in this order: hippocampus and left atrium, whose held-out cases are tested unchanged,
inverted, remapped and with a strong bias field; abdomen, from CT to MR; prostate, from MR to ultrasound. In each of
them every arm runs with one seed (draw of training cases), then with the others. The same command continues an
interrupted study. The results folder gets tables, two pictures and the list of cells that did not run, but no image of
data that may not be redistributed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.common import Steps, cpu_sized, use_tree, write_file
from benchmarks.studies.icmseg_data import CONTRASTS, SETS, Task
from benchmarks.studies.icmseg_runs import (
    BATCH_SIZE,
    CONFIGURATION,
    INFO_NCE,
    page,
    parser,
    run_draws,
    started,
    tables,
    unfinished,
    write_copies,
)
from benchmarks.studies.raw_data import ENDING, cases_of
from benchmarks.tables import COMPARISON_TABLES
from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.common.pictures import panels, png, show
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.report.style_pictures import draw_interventions
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.statistics.effects import Contrast

PLANS = "nnUNetPlans_cpu"
BASELINE, AUGMENTED = "BaselineTrainer", "BaselineTrainerDA5"
WITH_INFO_NCE = " + InfoNCE"  # in the name of an arm
LARGEST_SIDE, BASE_FEATURES = 32, 8
RESULTS = Path(__file__).parents[1] / "results" / "icmseg-styles"


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    arguments = parser(__doc__, RESULTS, SETS, epochs=12)
    arguments.add_argument("--styles", nargs="+", choices=list(INTERVENTIONS), default=list(INTERVENTIONS))
    args = arguments.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    try:
        for name in args.sets:
            run_set(name, args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args)
    return 0


def run_set(name: str, args: argparse.Namespace) -> None:
    """Write the data, plan, and run every arm with one seed after the other."""
    task = SETS[name](args.data, args.work / "nnUNet_raw", args.seed)
    write_plans(task, Steps(args.work), args)
    if name == "hippocampus":
        draw_pictures(task, args)
    for draws in range(1, min(args.seeds, task.most_draws) + 1):
        run_draws(name, task, PLANS, selection(args), draws, args)
        publish(args)


def plans_of(style: str, contrast: bool) -> str:
    """Name of the plans copy of an arm."""
    return f"{PLANS}_{style}_{'nce' if contrast else 'style'}"


def selection(args: argparse.Namespace) -> Selection:
    """The arms: the baselines, and each style without and with InfoNCE."""
    baselines = [f"{name}_{args.epochs}epochs" for name in (BASELINE, AUGMENTED)]
    arms, contrasts = [Arm(name, name) for name in baselines], [Contrast(baselines[1], baselines[0], baselines[0])]
    for style in args.styles:
        with_contrast = f"{style}{WITH_INFO_NCE}"
        for name, contrast in ((style, False), (with_contrast, True)):
            arms.append(Arm(name, f"ICMSegTrainer_{args.epochs}epochs", plans=plans_of(style, contrast)))
            contrasts += [Contrast(name, baseline, baseline) for baseline in baselines]
        contrasts.append(Contrast(with_contrast, style, "without InfoNCE"))
    return Selection(tuple(arms), tuple(contrasts))


def write_plans(task: Task, steps: Steps, args: argparse.Namespace) -> None:
    """Plan and preprocess the source, and write CPU-sized copies of the plans: a shared one, and one per arm."""
    entry = steps.plan(task.source, CONFIGURATION, f"plan_{task.source}")
    changes = cpu_sized(entry, [LARGEST_SIDE] * len(entry["patch_size"]), BASE_FEATURES, BATCH_SIZE)
    copies: dict[str, dict[str, Any]] = {PLANS: {}}
    for style in args.styles:
        copies[plans_of(style, True)] = {"style": style, **INFO_NCE}
        copies[plans_of(style, False)] = {"style": style}
    write_copies(task, changes, copies, args)


def draw_pictures(task: Task, args: argparse.Namespace) -> None:
    """Draw one held-out case in every contrast, and a training case in every style."""
    raw = args.work / "nnUNet_raw"
    case = cases_of(raw / task.targets[0])[0]
    labels = _volume(raw / task.targets[0] / "labelsTr" / f"{case}{ENDING}")
    index = int((labels > 0).sum(axis=(1, 2)).argmax())
    figure, axes = panels(1, len(task.targets))
    for axis, target, title in zip(axes[0], task.targets, CONTRASTS, strict=True):
        show(axis, _volume(raw / target / "imagesTr" / f"{case}_0000{ENDING}")[index], labels[index], title.lower())
    write_file(args.out / "contrasts.png", png(figure))
    path = sorted((raw / task.source / "labelsTr").iterdir())[0]
    image = _volume(raw / task.source / "imagesTr" / path.name.replace(ENDING, f"_0000{ENDING}"))
    write_file(args.out / "interventions.png", draw_interventions(image, _volume(path), args.seed))


def publish(args: argparse.Namespace) -> None:
    """Write tables of the finished cells, and a list of the cells that did not run."""
    parts, missing = [], []
    for name in SETS:
        jobs = started(name, args.work)
        if not jobs:
            missing.append(f"- {name}: nothing")
            continue
        for file in COMPARISON_TABLES:
            if (args.work / name / file).is_file():
                write_file(args.out / f"{name}_{file}", (args.work / name / file).read_bytes())
        missing += unfinished(name, jobs)
        arms = {f"{style}{more}" for style in INTERVENTIONS for more in ("", WITH_INFO_NCE)} - {
            job.arm.name for job in jobs
        }
        missing += [f"- {name}: {arm}: nothing" for arm in sorted(arms)]
        begun = {job.subset.draw for job in jobs}
        missing += [f"- {name}: seed {draw}: nothing" for draw in range(args.seeds) if draw not in begun]
        parts += tables(name, args.work)
    write_file(args.out / "tables.md", page(parts, missing))


def _volume(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


if __name__ == "__main__":
    sys.exit(main())
