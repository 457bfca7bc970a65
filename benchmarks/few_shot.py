"""Few labels on Hippocampus: every method, its twin and the baselines, by ``evaluate few-shot`` itself.

    python benchmarks/few_shot.py --data DIR/Dataset004_Hippocampus --work DIR [--jobs 2] [-device cpu]

60 of the labelled cases are kept apart before planning, as in hippocampus_alice.py. Both parts of the hippocampus are
one class: with nnU-Net's mirroring, so short a training does not learn to tell them apart. Each pre-training is made
by the command on the other 120 images (anatomix on synthetic ones). First every arm at one draw and 5 shots, then three
draws of AnatomixTrainer, then what the arms named in TUNED say about Alice's defaults, then three draws of all, then 1
and 3 shots. What is done is skipped: run the same command again after an interruption. The results folder gets tables
and pictures, and the list of cells not run.
"""

import argparse
import base64
import json
import os
import re
import sys
from pathlib import Path

import SimpleITK as sitk
from common import FEW_CORES, Steps, write_file
from hippocampus_alice import CONFIGURATION, DATASET, STOCK_PLANS, lay_out_raw
from tables import COMPARISON_TABLES, effect_table, level_table

from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.record import write_json
from nnunet_invariance.evaluation.report import PAGE
from nnunet_invariance.evaluation.stored import state, stored_jobs
from nnunet_invariance.plans.copies import write_plans_copy

PLANS = "nnUNetPlans_few"
PATCH, BASE_FEATURES, BATCH_SIZE = [32, 40, 32], 8, 2
EPOCHS, ITERATIONS, VAL_ITERATIONS = 20, 25, 2
METHODS = ("AliceTrainer", "AnatomixTrainer", "ICMSegTrainer")
BASELINES = ("BaselineTrainer", "MAETrainer")
PRETRAINING = {
    "alice": {"epochs": 30, "iterations": 50, "lr": 5e-4},
    "mae": {"epochs": 30, "iterations": 50, "lr": 5e-4},
    "anatomix": {"epochs": 20, "iterations": 50, "lr": 5e-4, "pairs": 1, "held_out": 4},
}
#: Options of AliceTrainer, each in a plans copy of its own, that might explain a loss; one draw each.
TUNED = {
    "rate1": {"encoder_lr_factor": 1.0},
    "noaux": {"aux": "none"},
    "rate1-noaux": {"encoder_lr_factor": 1.0, "aux": "none"},
    "rate1-noaux-decoder": {"encoder_lr_factor": 1.0, "aux": "none", "transfer": "encoder+decoder"},
    "rate1-noaux-student": {"encoder_lr_factor": 1.0, "aux": "none", "source": "student"},
}
ALL = tuple(f"{name}_{EPOCHS}epochs" for name in METHODS)
#: Stages of the grid in their order: draws, shots, trainers.
STAGES = {
    "first": (1, [5], ALL),
    "anatomix": (3, [5], (f"AnatomixTrainer_{EPOCHS}epochs",)),
    "tuned": (1, [5], tuple(f"AliceTrainer_{EPOCHS}epochs@{PLANS}_{name}" for name in TUNED)),
    "draws": (3, [5], ALL),
    "shots": (3, [5, 1, 3], ALL),
}
RESULTS = Path(__file__).parent / "results" / "few-shot"


def main() -> int:
    """Run the stages that are left; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"{DATASET} in nnU-Net's raw layout; only read")
    parser.add_argument("--templates", type=Path, required=True, help="folder of label maps for anatomix; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work = args.work.resolve()
    trees = {f"nnUNet_{tree}": str(args.work / f"nnUNet_{tree}") for tree in ("raw", "preprocessed", "results")}
    os.environ.update(trees)
    for variable, value in FEW_CORES.items():
        os.environ.setdefault(variable, value)
    steps = Steps(args.work)
    try:
        lay_out(args.data, args.work / "nnUNet_raw" / DATASET, args.seed)
        write_plans(steps, args)
        for stage in args.stages:
            steps.run(stage, command(stage, args))
            publish(args, steps)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args, steps)
    return 0


def lay_out(data: Path, raw: Path, seed: int) -> None:
    """As hippocampus_alice.py does, with one class."""
    if raw.is_dir():
        return
    partial = raw.with_name("partial")
    lay_out_raw(data, partial, seed)
    for path in partial.glob("labelsT?/*.nii.gz"):
        labels = sitk.ReadImage(path)
        path.unlink()  # a link to the data
        sitk.WriteImage(sitk.Cast(labels > 0, sitk.sitkUInt8), path)
    described = json.loads((partial / "dataset.json").read_text())
    write_json(partial / "dataset.json", {**described, "labels": {"background": 0, "hippocampus": 1}})
    partial.rename(raw)


def write_plans(steps: Steps, args: argparse.Namespace) -> None:
    """Plan and preprocess, and write the plans copy of a size for a CPU and those of the tuned arms."""
    steps.run("plan", ["nnUNetv2_plan_and_preprocess", "-d", "4", "-c", CONFIGURATION, "-npfp", "1", "-np", "1"])
    stock = json.loads((args.work / "nnUNet_preprocessed" / DATASET / f"{STOCK_PLANS}.json").read_text())
    architecture = stock["configurations"][CONFIGURATION]["architecture"]
    stages = architecture["arch_kwargs"]["n_stages"]
    architecture["arch_kwargs"]["features_per_stage"] = [BASE_FEATURES * 2**stage for stage in range(stages)]
    changes = {"patch_size": PATCH, "batch_size": BATCH_SIZE, "architecture": architecture}
    block = {"iterations_per_epoch": ITERATIONS, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": args.seed}
    write_plans_copy(DATASET, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)
    own_results = comparison(args) / "pretraining" / "nnUNet_results" / DATASET / "pretraining"
    alice = own_results / f"alice__{PLANS}__{CONFIGURATION}" / "checkpoint_final.safetensors"
    for name, own in TUNED.items():
        own = {**block, **own, "checkpoint": str(alice)}
        write_plans_copy(DATASET, STOCK_PLANS, f"{PLANS}_{name}", CONFIGURATION, own, changes)


def comparison(args: argparse.Namespace) -> Path:
    """Folder of the comparison."""
    return args.work / "comparison"


def command(stage: str, args: argparse.Namespace) -> list[str]:
    """The command of a stage, as a user would type it."""
    draws, shots, trainers = STAGES[stage]
    baselines = [f"{name}_{EPOCHS}epochs" for name in (BASELINES if trainers == ALL else BASELINES[:1])]
    words = {name: {**own, "templates": args.templates.resolve()} if name == "anatomix" else own
             for name, own in PRETRAINING.items()}  # fmt: skip
    settings = [f"{method}:{key}={value}" for method, own in words.items() for key, value in own.items()]
    return [
        *("nnunet-invariance", "evaluate", "few-shot", DATASET, CONFIGURATION, "-p", PLANS, "-device", args.device),
        *("--trainers", *trainers, "--baselines", *baselines),
        *("--draws", str(draws), "--shots", *map(str, shots), "--seed", str(args.seed), "--disable_tta"),
        *("--test", str(args.work / "nnUNet_raw" / DATASET), "--jobs", str(args.jobs)),
        *("--out", str(comparison(args)), "--pretrain", *settings),
    ]


def publish(args: argparse.Namespace, steps: Steps) -> None:
    """Tables and pictures of what is finished, and what is not run."""
    out = comparison(args)
    if not (out / "levels.csv").is_file():
        return
    for name in COMPARISON_TABLES:
        text = (out / name).read_text().replace(str(args.work), "WORK")
        write_file(RESULTS / name, text.replace(str(args.templates.resolve().parent), "DATA").encode())
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', (out / PAGE).read_text())
    for name, content in zip(("levels.png", "effects.png", "cases.png"), pictures, strict=False):
        write_file(RESULTS / name, base64.b64decode(content))
    jobs = stored_jobs(out)
    missing = [f"- {job.name}: {state(job)}" for job in jobs if not job.scores.is_file()]
    missing += [f"- stage {name!r} (draws, shots: {STAGES[name][:2]})" for name in STAGES if name not in steps.done]
    tables = [level_table(out / "levels.csv"), effect_table(out / "effects.csv")]
    text = "\n\n".join([*tables, "## Not run", "\n".join(missing) or "- nothing is missing"])
    write_file(RESULTS / "tables.md", f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
