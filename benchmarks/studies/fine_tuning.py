"""How a pre-trained encoder should be fine-tuned: AliceTrainer on Hippocampus with one option changed at a time.

Continues after hippocampus_alice.py with the same pre-training, the same five labelled and 60 test cases, and the same
number of iterations. Every setting has its own copy of the plans. The same command continues an interrupted study.

    python -m benchmarks.studies.fine_tuning --work DIR [--settings NAME ...] [-device cpu]
"""

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import use_tree
from benchmarks.studies.hippocampus_alice import (
    CONFIGURATION,
    DATASET,
    EPOCHS,
    PLANS,
    comparison_settings,
    lay_out_raw,
    pretraining_folder,
)
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.scoring.scores import read_scores
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

RESULTS = Path(__file__).parents[1] / "results" / "fine-tuning.json"


@dataclass(frozen=True)
class Setting:
    """A trainer, and the options that differ from the defaults."""

    trainer: str
    options: dict[str, Any] = field(default_factory=dict)


FULL_RATE = {"encoder_lr_factor": 1.0}
WARM_UP = {"warmup": 0.05}
NO_WARM_UP = {"warmup": 0.0}
NO_AUX = {"aux": False}

SETTINGS = {
    # Measured with a warm-up of the whole network, which today's options cannot express.
    "factor-1_no-aux": Setting("AliceTrainer", FULL_RATE | NO_AUX | WARM_UP),
    "factor-1_no-aux_no-warmup": Setting("AliceTrainer", FULL_RATE | NO_AUX | NO_WARM_UP),
    "factor-1_no-warmup": Setting("AliceTrainer", FULL_RATE | NO_WARM_UP),
    "factor-1_no-aux_encoder-warmup": Setting("AliceTrainer", FULL_RATE | NO_AUX | WARM_UP),
    "factor-1_no-aux_no-warmup_with-decoder": Setting(
        "AliceTrainer", FULL_RATE | NO_AUX | NO_WARM_UP | {"transfer": "encoder+decoder"}
    ),
    "scratch_no-warmup": Setting("AliceTrainer_scratch", NO_WARM_UP),
    "factor-0.1_no-aux_no-warmup": Setting("AliceTrainer", {"encoder_lr_factor": 0.1} | NO_AUX | NO_WARM_UP),
    "factor-1_no-aux_no-warmup_student": Setting(
        "AliceTrainer", FULL_RATE | NO_AUX | NO_WARM_UP | {"branch": "student"}
    ),
}


def main() -> int:
    """Run every setting that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"{DATASET} in nnU-Net's raw layout; only read")
    parser.add_argument("--work", type=Path, required=True, help="the --work of hippocampus_alice.py")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu")
    args = parser.parse_args()
    work = args.work.resolve()
    use_tree(work)
    checkpoint = pretraining_folder(work) / "checkpoint_final.safetensors"
    try:
        test = lay_out_raw(args.data, work / "nnUNet_raw" / DATASET, args.seed)
        for name in args.settings:
            run(name, SETTINGS[name], checkpoint, test, args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(name: str, setting: Setting, checkpoint: Path, test: list[str], args: argparse.Namespace) -> None:
    """Train, predict and score one setting in a separate folder, and write its row."""
    plans = f"{PLANS}_{name}"
    write_plans_copy(DATASET, PLANS, plans, CONFIGURATION, {**setting.options, "checkpoint": str(checkpoint)})
    trainer = f"{setting.trainer}_{EPOCHS}epochs"
    run_few_shot(
        open_planned_dataset(DATASET, CONFIGURATION, plans),
        Selection((Arm(trainer, trainer),)),
        comparison_settings(args.work.resolve() / "fine_tuning" / name, args.seed, args.device),
        test=test,
    )
    collect(args.work.resolve() / "fine_tuning", args.seed)


def collect(folder: Path, seed: int) -> None:
    """Collect the mean Dice per class of finished settings, and the training losses of all that started."""
    rows = {}
    for name, setting in SETTINGS.items():
        losses = training_losses(folder / name)
        if not losses:
            continue
        rows[name] = {**asdict(setting), "epochs": EPOCHS, "seed": seed, "train_loss": losses, "dice": None}
        if (folder / name / "scores.csv").is_file():
            scores = read_scores(folder / name / "scores.csv")
            classes = sorted({score.label for score in scores})
            dice = {c: float(np.nanmean([score.dice for score in scores if score.label == c])) for c in classes}
            rows[name]["dice"] = dice
            print(name, dice, flush=True)
    atomic_write(RESULTS, lambda file: file.write(json.dumps(rows, indent=1).encode()))


def training_losses(comparison: Path) -> list[float]:
    """The training loss per epoch that nnU-Net logged."""
    logs = sorted(comparison.glob("arms/*/nnUNet_results/*/*/fold_*/training_log_*.txt"))
    return [float(value) for log in logs for value in re.findall(r"train_loss (\S+)", log.read_text())]


if __name__ == "__main__":
    sys.exit(main())
