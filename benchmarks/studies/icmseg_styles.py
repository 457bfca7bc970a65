"""ICMSeg on real data: which style intervention generalises to another contrast or modality, and does InfoNCE help?

    python -m benchmarks.studies.icmseg_styles --data DIR --work DIR [--sets hippocampus ...] [--seeds 3] [-device cpu]

There are four data sets, in this order: hippocampus and left atrium, whose held-out cases are tested unchanged,
inverted, remapped and with a strong bias field; abdomen, from CT to MR; prostate, from MR to ultrasound. In each of
them every arm runs with one seed (draw of training cases), then with the others. The same command continues an
interrupted study. The results folder gets tables, two pictures and the list of cells that did not run, but no image of
data that may not be redistributed.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.common import Steps, cpu_sized, use_tree, write_file
from benchmarks.studies.icmseg_data import CONTRASTS, ENDING, SETS, Task
from benchmarks.tables import COMPARISON_TABLES, effect_table, mean_table
from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.cross_modality import run_cross_modality
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.report.pictures import panels, png, show
from nnunet_invariance.evaluation.report.style_pictures import draw_interventions
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

CONFIGURATION, STOCK_PLANS, PLANS = "3d_fullres", "nnUNetPlans", "nnUNetPlans_cpu"
BASELINE, AUGMENTED = "BaselineTrainer", "BaselineTrainerDA5"
INFO_NCE = " + InfoNCE"  # in the name of an arm
LARGEST_SIDE, BASE_FEATURES, BATCH_SIZE = 32, 8, 2
EPOCHS, ITERATIONS, VAL_ITERATIONS = 12, 25, 2
RESULTS = Path(__file__).parents[1] / "results" / "icmseg-styles"


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for tables and pictures")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="data sets, in their order")
    parser.add_argument("--styles", nargs="+", choices=list(INTERVENTIONS), default=list(INTERVENTIONS))
    parser.add_argument("--seeds", type=int, default=3, help="draws of the training cases")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="steps an epoch")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
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
    planned = open_planned_dataset(task.source, CONFIGURATION, PLANS)
    for draws in range(1, min(args.seeds, task.most_draws) + 1):
        run_cross_modality(
            planned,
            selection(args),
            ProtocolOptions(
                shots=task.shots,
                draws=draws,
                n_val=task.n_val,
                seed=args.seed,
                device=args.device,
                mirroring=False,
                out=args.work / name,
            ),
            task.targets,
            names=task.names,
            parts=task.parts,
        )
        publish(args)


def plans_of(style: str, contrast: bool) -> str:
    """Name of the plans copy of an arm."""
    return f"{PLANS}_{style}_{'nce' if contrast else 'style'}"


def selection(args: argparse.Namespace) -> Selection:
    """The arms: the baselines, and each style without and with InfoNCE."""
    baselines = [f"{name}_{args.epochs}epochs" for name in (BASELINE, AUGMENTED)]
    arms, contrasts = [Arm(name, name) for name in baselines], [Contrast(baselines[1], baselines[0], baselines[0])]
    for style in args.styles:
        with_contrast = f"{style}{INFO_NCE}"
        for name, contrast in ((style, False), (with_contrast, True)):
            arms.append(Arm(name, f"ICMSegTrainer_{args.epochs}epochs", plans=plans_of(style, contrast)))
            contrasts += [Contrast(name, baseline, baseline) for baseline in baselines]
        contrasts.append(Contrast(with_contrast, style, "without InfoNCE"))
    return Selection(tuple(arms), tuple(contrasts))


def write_plans(task: Task, steps: Steps, args: argparse.Namespace) -> None:
    """Plan and preprocess the source, and write CPU-sized copies of the plans: a shared one, and one per arm."""
    number = str(int(task.source[7:10]))
    command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    steps.run(f"plan_{task.source}", command)
    stock = read_json(args.work / "nnUNet_preprocessed" / task.source / f"{STOCK_PLANS}.json")
    entry = stock["configurations"][CONFIGURATION]
    changes = cpu_sized(entry, [LARGEST_SIDE] * len(entry["patch_size"]), BASE_FEATURES, BATCH_SIZE)
    block = {"iterations_per_epoch": args.iterations, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": args.seed}
    write_plans_copy(task.source, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)
    for style, contrast in itertools.product(args.styles, (False, True)):
        own = {"style": style} if contrast else {"style": style, "aux_weight": 0.0}
        write_plans_copy(task.source, STOCK_PLANS, plans_of(style, contrast), CONFIGURATION, {**block, **own}, changes)


def draw_pictures(task: Task, args: argparse.Namespace) -> None:
    """Draw one held-out case in every contrast, and a training case in every style."""
    raw = args.work / "nnUNet_raw"
    case = sorted(p.name.removesuffix(ENDING) for p in (raw / task.targets[0] / "labelsTr").iterdir())[0]
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
        out = args.work / name
        if not (out / "comparison.json").is_file():
            missing.append(f"- {name}: nothing")
            continue
        for file in COMPARISON_TABLES:
            if (out / file).is_file():
                write_file(args.out / f"{name}_{file}", (out / file).read_bytes())
        jobs = stored_jobs(out)
        missing += [f"- {name}: {job.name}: {state(job)}" for job in jobs if not job.finished]
        arms = {f"{style}{more}" for style in INTERVENTIONS for more in ("", INFO_NCE)} - {job.arm.name for job in jobs}
        missing += [f"- {name}: {arm}: nothing" for arm in sorted(arms)]
        begun = {job.subset.draw for job in jobs}
        missing += [f"- {name}: seed {draw}: nothing" for draw in range(args.seeds) if draw not in begun]
        if (out / "means.csv").is_file():
            parts += [f"## {name}", mean_table(out / "means.csv"), effect_table(out / "effects.csv")]
    text = "\n\n".join([*parts, "## Not run", "\n".join(missing) or "- nothing is missing"])
    write_file(args.out / "tables.md", f"{text}\n".encode())


def _volume(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


if __name__ == "__main__":
    sys.exit(main())
