"""Alice on real data: does pre-training on 120 unlabelled hippocampus crops help when 5 of them have labels?

The seed selects 60 labelled cases for the test, which are moved to imagesTs and labelsTs first, so that fingerprint,
plans, pre-training and training see only the others. Three trainers then get the same five labelled cases and the same
number of iterations. The same command continues an interrupted study.

    python -m benchmarks.studies.hippocampus_alice --data DIR/Dataset004_Hippocampus --work DIR [--seed 0] [-device cpu]

Data: Medical Segmentation Decathlon, Task04, in nnU-Net's raw layout (CC-BY-SA 4.0).
"""

import argparse
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Steps, use_tree
from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError, InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.report.results import compute_results, summary
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.tree import link
from nnunet_invariance.evaluation.scoring.scores import read_scores
from nnunet_invariance.evaluation.statistics.effects import ArmMean, Contrast, Effect
from nnunet_invariance.networks.planned import Architecture, cumulative_strides, token_stage
from nnunet_invariance.nnunet.cases import Case, make_manifest
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.nnunet.unlabelled_images import preprocess_images
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.measures.position_retrieval import masked_error, position_retrieval
from nnunet_invariance.weights.checkpoint import load_checkpoint

DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
STOCK_PLANS, PLANS = "nnUNetPlans", "nnUNetPlans_cpu"
N_TEST = 60
SHOTS, N_VAL = 5, 2
BASE_FEATURES, BATCH_SIZE = 16, 2
PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 30, 50
PRETRAINING_SETTINGS = ("lr=5e-4",)  # the default of 1e-4 suits runs about sixty times as long
EPOCHS, ITERATIONS, VAL_ITERATIONS = 60, 25, 2
BASELINES = (f"AliceTrainer_scratch_{EPOCHS}epochs", f"BaselineTrainer_{EPOCHS}epochs")
TRAINERS = (f"AliceTrainer_{EPOCHS}epochs", *BASELINES)
RESULTS = Path(__file__).parents[1] / "results" / "hippocampus-alice"


def main() -> int:
    """Run every step that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"{DATASET} in nnU-Net's raw layout; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes (about 1 GB)")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, shots, networks and augmentation")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    work = args.work.resolve()
    steps = Steps(work)
    use_tree(work)
    try:
        test = lay_out_raw(args.data, work / "nnUNet_raw" / DATASET, args.seed)
        plan(work, steps, args.seed)
        pretrain(work, steps, args.seed, args.device)
        probe(work, args.seed)
        comparison = run_few_shot(
            open_planned_dataset(DATASET, CONFIGURATION, PLANS),
            Selection(tuple(Arm(trainer, trainer) for trainer in TRAINERS)),
            comparison_settings(work / "comparison", args.seed, args.device),
            test=test,
        )
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    collect(work, comparison, steps)
    return 0


def comparison_settings(out: Path, seed: int, device: str, draws: int = 1) -> ProtocolOptions:
    """The settings of the comparison: few labelled cases, prediction without mirroring."""
    return ProtocolOptions(shots=[SHOTS], draws=draws, n_val=N_VAL, seed=seed, device=device, mirroring=False, out=out)


def lay_out_raw(data: Path, raw: Path, seed: int) -> list[str]:
    """Link the data into a separate raw folder with the test cases in imagesTs; returns the test cases."""
    if not (data / "dataset.json").is_file():
        raise ComparisonError(f"{data} contains no dataset.json. Give {DATASET} in nnU-Net's raw layout with --data.")
    dataset = read_json(data / "dataset.json")
    ending = dataset["file_ending"]
    cases = sorted(p.name[: -len(ending)] for p in (data / "labelsTr").glob(f"*{ending}"))
    test = sorted(random.Random(f"hippocampus {seed}").sample(cases, N_TEST))
    for case in cases:
        kind = "Ts" if case in test else "Tr"
        for name, folder in ((f"{case}_0000{ending}", "images"), (f"{case}{ending}", "labels")):
            link(data / f"{folder}Tr" / name, raw / f"{folder}{kind}" / name)
    dataset["numTraining"] = len(cases) - len(test)
    if len(list((raw / "imagesTr").iterdir())) != dataset["numTraining"]:
        raise ComparisonError(f"{raw} was made with another seed or from other data. Give another --work.")
    write_json(raw / "dataset.json", dataset)
    return test


def plan(work: Path, steps: Steps, seed: int) -> None:
    """Plan and preprocess the other cases, and write a CPU-sized copy of the plans."""
    command = ["nnUNetv2_plan_and_preprocess", "-d", "4", "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    steps.run("plan_and_preprocess", command)
    stock = read_json(work / "nnUNet_preprocessed" / DATASET / f"{STOCK_PLANS}.json")
    architecture = stock["configurations"][CONFIGURATION]["architecture"]
    features = [BASE_FEATURES * 2**stage for stage in range(architecture["arch_kwargs"]["n_stages"])]
    architecture["arch_kwargs"]["features_per_stage"] = features
    block = {"iterations_per_epoch": ITERATIONS, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": seed}
    changes = {"batch_size": BATCH_SIZE, "architecture": architecture}
    write_plans_copy(DATASET, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)


def pretraining_folder(work: Path) -> Path:
    """Folder of the pre-training."""
    return work / "nnUNet_results" / DATASET / "pretraining" / f"alice__{PLANS}__{CONFIGURATION}"


def pretrain(work: Path, steps: Steps, seed: int, device: str) -> None:
    """Pre-train Alice on the preprocessed cases without labels."""
    command = ["nnunet-invariance", "pretrain", "alice", DATASET, CONFIGURATION, "-p", PLANS, "-device", device]
    command += ["--epochs", str(PRETRAINING_EPOCHS), "--iterations", str(PRETRAINING_ITERATIONS), "--seed", str(seed)]
    command += ["--set", *PRETRAINING_SETTINGS]
    folder = pretraining_folder(work)
    if (folder / "checkpoint_latest.safetensors").is_file() or (folder / "checkpoint_final.safetensors").is_file():
        command.append("--c")
    log = folder / "metrics.csv"
    said = 0

    def on_poll() -> None:
        nonlocal said
        epochs = len(log.read_text().splitlines()) - 1 if log.is_file() else 0
        if epochs > said:
            said = epochs
            print(f"pre-training: epoch {epochs} of {PRETRAINING_EPOCHS}", flush=True)

    steps.run("pretrain", command, on_poll)


def probe(work: Path, seed: int) -> None:
    """Probe random and pre-trained networks; writes probes.json."""
    target = work / "probes.json"
    if target.is_file():
        return
    planned = open_planned_dataset(DATASET, CONFIGURATION, PLANS)
    cases = unseen_cases(work, planned)
    checkpoint = pretraining_folder(work) / "checkpoint_final.safetensors"
    rows = [measure(f"random {i}", planned, cases, seed, random_seed=seed + i) for i in range(3)]
    rows += [measure(name, planned, cases, seed, checkpoint) for name in ("student", "teacher")]
    write_json(target, rows)


def unseen_cases(work: Path, planned: PlannedDataset) -> Sequence[Case]:
    """The preprocessed test images, which no training has seen."""
    folders = preprocess_images([work / "nnUNet_raw" / DATASET / "imagesTs"], planned)
    strides = planned.configuration.pool_op_kernel_sizes
    return make_manifest(folders, 1, cumulative_strides(strides)[token_stage(strides)], N_TEST).cases


def measure(
    name: str,
    planned: PlannedDataset,
    cases: Sequence[Case],
    seed: int,
    checkpoint: Path | None = None,
    random_seed: int = 0,
) -> dict[str, Any]:
    """Position retrieval and masked error of the ``student`` or ``teacher`` of a checkpoint, or of a random network."""
    torch.manual_seed(random_seed)
    network = Architecture.from_plans(planned.configuration.configuration["architecture"], 1, 1).build().eval()
    if checkpoint:
        restore_module(network, load_checkpoint(checkpoint).section({"student": "network"}.get(name, name)))
    error, chance = position_retrieval(network.encoder, cases, planned.patch_size, planned.spacing, seed)
    masked = masked_error(network, cases, planned.patch_size, seed=seed)
    row = {"weights": name, "retrieval_mm": error, "chance_mm": chance, "masked_error": masked}
    print(row, flush=True)
    return row


def collect(work: Path, comparison: Path, steps: Steps) -> None:
    """Copy tables, curves and records, but no images, to the results folder."""
    scores = read_scores(comparison / "scores.csv")
    arms = dict.fromkeys(score.arm for score in scores)
    pairs = [(arm, baseline) for baseline in BASELINES for arm in arms if arm != baseline]
    results = compute_results(scores, [Contrast(arm, baseline, baseline) for arm, baseline in pairs], seed=0)
    write_csv(RESULTS / "means.csv", results.means, ArmMean)
    write_csv(RESULTS / "effects.csv", results.effects, Effect)
    print(summary(results))
    shutil.copyfile(comparison / "scores.csv", RESULTS / "scores.csv")
    for name in ("progress.png", "metrics.csv", "manifest.json"):
        shutil.copyfile(pretraining_folder(work) / name, RESULTS / f"pretraining_{name}")
    shutil.copyfile(work / "probes.json", RESULTS / "probes.json")
    for trainer in TRAINERS:
        results = comparison / "arms" / trainer / "nnUNet_results" / DATASET
        fold = results / f"{trainer}__{PLANS}__{CONFIGURATION}" / "fold_0"
        for path in fold.glob("*.png"):
            shutil.copyfile(path, RESULTS / f"{trainer}_{path.name}")
        if (fold / "transfer_report.json").is_file():
            report = read_json(fold / "transfer_report.json")
            if "checkpoint" in report:
                report["checkpoint"] = Path(
                    report["checkpoint"]
                ).name  # without the folder, because the report is published
            write_json(RESULTS / f"{trainer}_transfer_report.json", report)
    record = read_json(comparison / "comparison.json")
    record["steps"] = steps.done
    plans = read_json(work / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json")
    record["plans"] = plans["configurations"][CONFIGURATION]
    write_json(RESULTS / "record.json", record)
    print(f"results: {os.path.relpath(RESULTS)}")


if __name__ == "__main__":
    sys.exit(main())
