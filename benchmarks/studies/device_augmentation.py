"""Does a training end equally well if the device augments? Both augmentations through nnUNetv2_train.

    python -m benchmarks.studies.device_augmentation --work DIR --datasets ID ... [-p PLANS] [-device cpu]

``nnUNet_preprocessed`` must hold the preprocessed data sets; every arm and seed gets a copy of the plans there.
Trainings and logs go to ``--work``. The arms of a seed differ in the option "augmentation" only, have the same split
and the same number of iterations, and are compared by the mean Dice of nnU-Net's own validation of fold 0. The same
command continues an interrupted study, and writes the table of what is finished.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import FEW_CORES, Steps, environment, publish
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

ARMS = ("nnunet", "device")
EPOCHS, ITERATIONS = 20, 1000
TOLERANCE = 0.01  # of the mean Dice
RESULT = Path(__file__).parents[1] / "results" / "device-augmentation" / "trainings.json"


class Training(NamedTuple):
    """One training; ``plans`` is the name of its plans copy."""

    dataset: str
    arm: str
    seed: int
    plans: str

    @property
    def name(self) -> str:
        """Name of its step and of its log."""
        return f"{self.dataset}_{self.plans}"


def prepared(dataset: str, arm: str, seed: int, arguments: argparse.Namespace) -> Training:
    """Write the plans copy of a training."""
    epochs = arguments.epochs
    block = {
        "augmentation": arm,
        "seed": seed,
        "precision": arguments.precision,
        "mirroring": arguments.mirroring,
        "iterations_per_epoch": arguments.iterations // epochs,
        "val_iterations_per_epoch": 1,
    }
    mirrored = "" if arguments.mirroring == "all" else f"_mirroring_{arguments.mirroring}"
    name = f"{arguments.plans}_{arguments.iterations}it{mirrored}_{arm}_seed{seed}"
    write_plans_copy(dataset, arguments.plans, name, arguments.configuration, block)
    return Training(dataset, arm, seed, name)


def dice_of(training: Training, arguments: argparse.Namespace) -> float | None:
    """Mean Dice of the validation cases over the classes, or None if the training is not finished."""
    trainer = f"BaselineTrainer_{arguments.epochs}epochs__{training.plans}__{arguments.configuration}"
    file = arguments.work / "results" / training.dataset / trainer / "fold_0" / "validation" / "summary.json"
    summary = read_json(file, default={})
    return summary["foreground_mean"]["Dice"] if summary else None


def table(trainings: list[Training], arguments: argparse.Namespace) -> dict[str, Any]:
    """Dice per data set, seed and arm, and the difference between the arms over the seeds."""
    result: dict[str, Any] = {}
    for dataset in dict.fromkeys(training.dataset for training in trainings):
        own = [training for training in trainings if training.dataset == dataset]
        scores = {arm: {t.seed: dice_of(t, arguments) for t in own if t.arm == arm} for arm in ARMS}
        pairs = [(scores["nnunet"][seed], scores["device"][seed]) for seed in scores["nnunet"]]
        differences = [float(ours - stock) for stock, ours in pairs if stock is not None and ours is not None]
        mean = float(np.mean(differences)) if differences else None
        result[dataset] = {
            "dice": scores,
            "device_minus_nnunet": {"per_seed": differences, "mean": mean},
            "within_tolerance": None if mean is None else bool(abs(mean) <= TOLERANCE),
            "not_finished": [training.name for training in own if dice_of(training, arguments) is None],
        }
    return result


def main() -> int:
    """Run every training that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for trainings, logs and results")
    parser.add_argument("--datasets", nargs="+", required=True, help="names or ids, preprocessed")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-c", dest="configuration", default="3d_fullres")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="the iterations are divided among them")
    parser.add_argument("--precision", default="auto", help="option of both arms")
    parser.add_argument("--mirroring", choices=("all", "auto"), default="all", help="option of both arms")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    os.environ["nnUNet_results"] = str(arguments.work / "results")
    for variable, value in FEW_CORES.items():
        os.environ.setdefault(variable, value)
    described = environment(arguments.device, os.cpu_count() or 1)
    steps = Steps(arguments.work)
    try:
        names = [open_planned_dataset(d, arguments.configuration, arguments.plans).name for d in arguments.datasets]
        trainings = [
            prepared(dataset, arm, seed, arguments) for seed in arguments.seeds for dataset in names for arm in ARMS
        ]
        for training in trainings:
            command = ["nnUNetv2_train", training.dataset, arguments.configuration, "0"]
            command += ["-tr", f"BaselineTrainer_{arguments.epochs}epochs", "-p", training.plans]
            steps.run(training.name, [*command, "-device", arguments.device, "--c"])
            inputs = {
                name: getattr(arguments, name)
                for name in ("plans", "configuration", "iterations", "epochs", "precision", "mirroring")
            }
            publish("device_augmentation", described, {"input": inputs, **table(trainings, arguments)}, arguments.out)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
