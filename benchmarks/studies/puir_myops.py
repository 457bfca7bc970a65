"""PUIR on the three cardiac sequences of MyoPS: segmentation from every subset of them, and modality translation.

    python -m benchmarks.studies.puir_myops --data DIR --work DIR [--parts pretraining missing translation] [--draws 3]

Ten of the 25 labelled cases are set apart by seed before planning. `missing` trains PUIRTrainer, its twin,
ChannelDropoutTrainer and BaselineTrainer (whose missing channels are zeros) on ten of the others, and tests each on all
seven subsets of C0, LGE and T2. `translation` trains a translator on all of the others and scores every pair of
sequences against a copy of the source; the goal is to be better than the copy of the best source. A cell that is
finished is not repeated: run the same command again after an interruption, or with more draws.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import STOCK_PLANS, Steps, cpu_sized, environment, run_length, study_parser, use_tree, write_file
from benchmarks.studies.puir_held_out import Average
from benchmarks.studies.raw_data import cases_of, link_cases
from benchmarks.tables import effect_table, markdown, mean_table
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.missing_modality import choose_subsets
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.modality_translation.evaluate import METRICS, SCORES, evaluate_translation, read_pairs
from nnunet_invariance.modality_translation.translator import load_translator
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.weights.locate import pretraining_folder

DATASET, CONFIGURATION, PLANS = "Dataset912_MyoPS", "3d_fullres", "nnUNetPlans_cpu"
TEST_CASES, SHOTS = 10, 10
PATCH, BATCH_SIZE = (4, 80, 80), 2
LEARNING_RATE = 1e-3  # of the pre-training: a few hundred steps need more than the default
PARTS = ("pretraining", "missing", "translation")
TRAINERS = ("PUIRTrainer", "ChannelDropoutTrainer", "BaselineTrainer")
RESULTS = Path(__file__).parents[1] / "results" / "puir-myops"


def main() -> int:
    """Run every part that is not finished; returns the exit status."""
    parser = study_parser(__doc__, RESULTS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in their order")
    parser.add_argument("--draws", type=int, default=1, help="of the training cases, each with a seed of its own")
    parser.add_argument("--features", type=int, default=16, help="of the first stage")
    parser.add_argument("--epochs", type=int, default=20, help="of every segmentation training")
    parser.add_argument("--iterations", type=int, default=50, help="steps an epoch")
    parser.add_argument("--pretraining-steps", type=int, default=500, help="and of the translation")
    parser.add_argument("--seed", type=int, default=0, help="of the test cases, draws, networks and augmentation")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    torch.set_num_threads(1)
    try:
        steps = prepare(args)
        for part, does in (("pretraining", pretrain), ("missing", segment), ("translation", translate)):
            if part in args.parts:
                does(args, steps)
                publish(args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def prepare(args: argparse.Namespace) -> Steps:
    """Set the test cases apart, plan, preprocess, and write a CPU-sized copy of the plans."""
    data = args.data / DATASET
    test = random.Random(f"{DATASET} {args.seed}").sample(cases_of(data), TEST_CASES)
    link_cases(data, args.work / "nnUNet_raw" / DATASET, test)
    steps = Steps(args.work)
    changes = cpu_sized(steps.plan(DATASET, CONFIGURATION), PATCH, args.features, BATCH_SIZE)
    block = {"iterations_per_epoch": args.iterations, "val_iterations_per_epoch": 1, "seed": args.seed}
    write_plans_copy(DATASET, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)
    return steps


def where(args: argparse.Namespace) -> list[str]:
    """Data set, configuration, plans and device, as command-line arguments."""
    return [DATASET, CONFIGURATION, "-p", PLANS, "-device", args.device]


def flags(args: argparse.Namespace, method: str) -> list[str]:
    """Flags of a pre-training."""
    folder = pretraining_folder(method, DATASET, PLANS, CONFIGURATION)
    return run_length(folder, args.pretraining_steps, 10, args.seed)


def pretrain(args: argparse.Namespace, steps: Steps) -> None:
    """Pre-train PUIR on all cases that are not tested."""
    words = ["--set", f"lr={LEARNING_RATE}", "workers=0"]
    steps.run("pretraining", ["nnunet-invariance", "pretrain", "puir", *where(args), *flags(args, "puir"), *words])


def segment(args: argparse.Namespace, steps: Steps) -> None:
    """Train all arms, and test them on all subsets of the sequences."""
    puir, *baselines = [f"{name}_{args.epochs}epochs" for name in TRAINERS]
    command = [
        *("nnunet-invariance", "evaluate", "missing-modality", *where(args)),
        *("--trainers", puir, "--baselines", *baselines, "--shots", str(SHOTS), "--draws", str(args.draws)),
        *("--test", str(args.work / "nnUNet_raw" / DATASET), "--seed", str(args.seed), "--disable_tta"),
        *("--out", str(args.work / "comparison")),
    ]
    steps.run(f"missing_{args.draws}", command)


def translate(args: argparse.Namespace, steps: Steps) -> None:
    """Train a translator, and score it and a copy of the sources on the test cases."""
    length = flags(args, "puir_translation")
    words = ["--set", f"lr={LEARNING_RATE}", "workers=0"]
    steps.run("translation", ["nnunet-invariance", "translate", "train", *where(args), *length, *words])
    planned = open_planned_dataset(DATASET, CONFIGURATION, PLANS)
    translator = load_translator(planned, device=args.device)
    images = args.work / "nnUNet_raw" / DATASET / "imagesTs"
    copied = replace(translator, network=Average(1.0), device=torch.device("cpu"))
    for name, model in (("translated", translator), ("copied", copied)):
        if not (args.work / name / SCORES).is_file():
            # Every sequence alone, and every pair of them.
            subsets = [s for s in choose_subsets(planned.channel_names) if len(s) < len(planned.channel_names)]
            evaluate_translation(model, images, args.work / name, subsets)


def publish(args: argparse.Namespace) -> None:
    """Write the tables and numbers of what is finished, and a list of what is not."""
    text, numbers = [], {"environment": environment(args.device, 1), "steps": Steps(args.work).done}
    out = args.work / "comparison"
    if (out / "means.csv").is_file():
        text += ["## Dice from every subset", mean_table(out / "means.csv"), effect_table(out / "effects.csv")]
        missing = [f"- {job.name}: {state(job)}" for job in stored_jobs(out) if not job.finished]
        text += ["## Not run", "\n".join(missing) or "- nothing is missing"]
        write_file(args.out / "scores.csv", (out / "scores.csv").read_bytes())
    if all((args.work / name / SCORES).is_file() for name in ("translated", "copied")):
        numbers["translation"] = pairs = translation_means(args)
        text += ["## Translation: mean over the cases, translated / copied", translation_table(pairs)]
    write_file(args.out / "results.json", (json.dumps(numbers, indent=1) + "\n").encode())
    write_file(args.out / "tables.md", ("\n\n".join(text) + "\n").encode())


def translation_means(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Mean of each metric over the cases, by pair of sequences, translated and copied."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("translated", "copied"):
        rows = read_pairs(args.work / kind)
        for source, target in dict.fromkeys((row.source, row.target) for row in rows):
            own = [row for row in rows if (row.source, row.target) == (source, target)]
            values = {metric: float(np.mean([getattr(row, metric) for row in own])) for metric in METRICS}
            means.setdefault(f"{source} -> {target}", {})[kind] = values
    return means


def translation_table(pairs: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row per pair, with the NMSE of the copy of the best source of the target, and of the best mean of sources."""
    copied: dict[str, list[tuple[int, float]]] = {}  # by target: number of sources, and NMSE of their mean
    for pair, found in pairs.items():
        source, target = pair.split(" -> ")
        copied.setdefault(target, []).append((len(source.split("+")), found["copied"]["nmse"]))
    lines = []
    for pair, found in pairs.items():
        source, target = pair.split(" -> ")
        own = [f"{found['translated'][m]:.3f} / {found['copied'][m]:.3f}" for m in METRICS]
        best = [min(nmse for sources, nmse in copied[target] if sources <= most) for most in (1, 2)]
        verdicts = ["yes" if found["translated"]["nmse"] < nmse else "no" for nmse in best]
        lines.append([source, target, *own, *(f"{n:.3f}, {v}" for n, v in zip(best, verdicts, strict=True))])
    head = ["from", "to", *(metric.replace("_", " ") for metric in METRICS)]
    head += ["NMSE of the best copy of one sequence, better than it", "of the best copy or mean, better than it"]
    return markdown(head, lines)


if __name__ == "__main__":
    sys.exit(main())
