"""Every method, its twin and the baselines with few labels on real data, run by ``evaluate few-shot``.

    python -m benchmarks.studies.few_shot --data DIR --work DIR [--set hippocampus] [--jobs 2] [-device cpu]

Test cases are kept apart by seed before planning. Labels are one class: both parts of the hippocampus together, because
with nnU-Net's mirroring so short a training does not learn to tell them apart. Each pre-training is made by the command
on the other images (anatomix on synthetic ones). First every arm at one draw, then three draws of AnatomixTrainer and
of AliceTrainer, then AliceTrainer with other options (TUNED), then three draws of all, then the other numbers of shots.
What is done is skipped: run the same command again after an interruption, with a --work for each set. The results
folder gets tables and pictures, and the list of cells not run.
"""

import argparse
import base64
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from benchmarks.common import STOCK_PLANS, Steps, cpu_sized, use_tree, write_file
from benchmarks.tables import COMPARISON_TABLES, effect_table, mean_table
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.report.page import PAGE
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.runner.tree import link
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.weights.locate import FINAL

CONFIGURATION, PLANS = "3d_fullres", "nnUNetPlans_few"
BASE_FEATURES, BATCH_SIZE = 8, 2
EPOCHS, ITERATIONS, VAL_ITERATIONS = 20, 25, 2
METHODS = ("AliceTrainer", "AnatomixTrainer", "ICMSegTrainer")
BASELINES = ("BaselineTrainer", "MAETrainer")
PRETRAINING = {
    "alice": {"epochs": 30, "iterations": 50, "lr": 5e-4},
    "mae": {"epochs": 30, "iterations": 50, "lr": 5e-4},
    "anatomix": {"epochs": 20, "iterations": 50, "lr": 5e-4, "batch_size": 1, "held_out": 4},
}
#: AliceTrainer with other than its default options, each in a plans copy.
TUNED = {
    "rate0.1": {"encoder_lr_factor": 0.1},
    "rate0.1-noaux": {"encoder_lr_factor": 0.1, "aux": False},
    "rate1-noaux": {"encoder_lr_factor": 1.0, "aux": False},
    "rate1-noaux-decoder": {"encoder_lr_factor": 1.0, "aux": False, "transfer": "encoder+decoder"},
    "rate1-noaux-student": {"encoder_lr_factor": 1.0, "aux": False, "branch": "student"},
}
ALICE, ANATOMIX, _ = ALL = tuple(f"{name}_{EPOCHS}epochs" for name in METHODS)
#: Stages of the grid, in order: draws, whether all numbers of shots or only the first, trainers, baselines.
STAGES = {
    "first": (1, False, ALL, BASELINES),
    "anatomix": (3, False, (ANATOMIX,), BASELINES[:1]),
    "alice": (3, False, (ALICE,), BASELINES),
    "tuned": (1, False, (ALICE,), (*BASELINES[:1], *(f"AliceTrainer@{PLANS}_{name}" for name in TUNED))),
    "draws": (3, False, ALL, BASELINES),
    "shots": (3, True, ALL, BASELINES),
}
RESULTS = Path(__file__).parents[1] / "results" / "few-shot"
TEMPLATES = "labelmaps_head"


@dataclass(frozen=True)
class Task:
    """A data set: the name of its class, the number of test cases, the patch size, and the numbers of shots."""

    dataset: str
    organ: str
    n_test: int
    patch_size: Sequence[int]
    shots: Sequence[int]


TASKS = {
    "hippocampus": Task("Dataset004_Hippocampus", "hippocampus", 60, (32, 40, 32), (5, 1, 3)),
    "left_atrium": Task("Dataset901_LA2018", "left_atrium", 6, (32, 48, 48), (2,)),
}


def main() -> int:
    """Run every stage that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder; only read")
    parser.add_argument("--set", choices=TASKS, default="hippocampus", dest="task", help="data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    steps = Steps(args.work)
    try:
        task = TASKS[args.task]
        lay_out(task, args)
        write_plans(task, steps, args)
        write_tuned_plans(task, args)
        for stage in args.stages:
            steps.run(stage, command(task, stage, args))
            publish(args, steps)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args, steps)
    return 0


def lay_out(task: Task, args: argparse.Namespace) -> None:
    """Write the raw data set with one class; the test cases are in imagesTs and labelsTs."""
    data, raw = args.data / task.dataset, args.work / "nnUNet_raw" / task.dataset
    if (raw / "dataset.json").is_file():
        return
    described = read_json(data / "dataset.json")
    ending = described["file_ending"]
    cases = sorted(path.name.removesuffix(ending) for path in (data / "labelsTr").glob(f"*{ending}"))
    test = random.Random(f"{args.task} {args.seed}").sample(cases, task.n_test)
    for case in cases:
        kind = "Ts" if case in test else "Tr"
        link(data / "imagesTr" / f"{case}_0000{ending}", raw / f"images{kind}" / f"{case}_0000{ending}")
        labels = sitk.ReadImage(data / "labelsTr" / f"{case}{ending}")
        (raw / f"labels{kind}").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.Cast(labels > 0, sitk.sitkUInt8), raw / f"labels{kind}" / f"{case}{ending}")
    described |= {"labels": {"background": 0, task.organ: 1}, "numTraining": len(cases) - len(test)}
    write_json(raw / "dataset.json", described)


def write_plans(task: Task, steps: Steps, args: argparse.Namespace) -> None:
    """Plan and preprocess, and write a CPU-sized copy of the plans."""
    changes = cpu_sized(steps.plan(task.dataset, CONFIGURATION), task.patch_size, BASE_FEATURES, BATCH_SIZE)
    block = {"iterations_per_epoch": ITERATIONS, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": args.seed}
    write_plans_copy(task.dataset, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)


def write_tuned_plans(task: Task, args: argparse.Namespace) -> None:
    """Write a plans copy for each tuned arm; all of them use the first pre-training."""
    own_results = comparison(args) / "pretraining" / "nnUNet_results" / task.dataset / "pretraining"
    alice = own_results / f"alice__{PLANS}__{CONFIGURATION}" / FINAL
    for name, own in TUNED.items():
        write_plans_copy(task.dataset, PLANS, f"{PLANS}_{name}", CONFIGURATION, {**own, "checkpoint": str(alice)})


def comparison(args: argparse.Namespace) -> Path:
    """Folder of the comparison."""
    return args.work / "comparison"


def command(task: Task, stage: str, args: argparse.Namespace) -> list[str]:
    """The command of a stage."""
    draws, all_shots, trainers, baselines = STAGES[stage]
    shots = task.shots if all_shots else task.shots[:1]
    words = {**PRETRAINING, "anatomix": {**PRETRAINING["anatomix"], "templates": args.data.resolve() / TEMPLATES}}
    settings = [f"{method}:{key}={value}" for method, own in words.items() for key, value in own.items()]
    return [
        *("nnunet-invariance", "evaluate", "few-shot", task.dataset, CONFIGURATION, "-p", PLANS),
        *("-device", args.device, "--trainers", *trainers, "--baselines", *baselines),
        *("--draws", str(draws), "--shots", *map(str, shots), "--seed", str(args.seed), "--disable_tta"),
        *("--test", str(args.work / "nnUNet_raw" / task.dataset), "--jobs", str(args.jobs)),
        *("--out", str(comparison(args)), "--pretrain", *settings),
    ]


def publish(args: argparse.Namespace, steps: Steps) -> None:
    """Write tables and pictures of the finished cells, and a list of the cells that did not run."""
    out, folder = comparison(args), RESULTS / args.task
    if not (out / "means.csv").is_file():
        return
    for name in COMPARISON_TABLES:
        text = (out / name).read_text().replace(str(args.work), "WORK")
        write_file(folder / name, text.replace(str(args.data.resolve()), "DATA").encode())
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', (out / PAGE).read_text())
    for name, content in zip(("means.png", "effects.png", "cases.png"), pictures, strict=False):
        write_file(folder / name, base64.b64decode(content))
    jobs = stored_jobs(out)
    missing = [f"- {job.name}: {state(job)}" for job in jobs if not job.finished]
    missing += [f"- stage {name!r}" for name in STAGES if name not in steps.done]
    tables = [mean_table(out / "means.csv"), effect_table(out / "effects.csv")]
    text = "\n\n".join([*tables, "## Not run", "\n".join(missing) or "- nothing is missing"])
    write_file(folder / "tables.md", f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
