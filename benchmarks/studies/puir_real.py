"""PUIR on real data: every subset of the modalities, modality translation, and the effect of each constraint.

    python -m benchmarks.studies.puir_real --data DIR --work DIR [--sets brats ...] [--parts NAME ...] [--draws 2] \
        [-device cpu]

There are two data sets of two patients each; one patient is used for training, the other for the test, and a draw is
the choice. The first draw runs completely before the second one. The same command continues an interrupted study. The
results folder gets tables, numbers, the list of cells that did not run, and pictures of the data that may be
redistributed.

The contrastive loss distinguishes cases: it is 0 for brats, which trains on one scan, and in pgbm it distinguishes two
visits of one patient.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.common import STOCK_PLANS, Steps, cpu_sized, run_length, study_parser, use_tree
from benchmarks.studies.puir_data import DRAWS, SETS, Task
from benchmarks.studies.puir_held_out import Average, held_out_crops, held_out_quantities
from benchmarks.studies.puir_tables import CONSTRAINTS, FILLED, FULL, publish
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.cases import LabelledCase, test_folder_cases
from nnunet_invariance.evaluation.protocols.missing_modality import JOIN, PROTOCOL, choose_subsets, missing_modalities
from nnunet_invariance.evaluation.protocols.pretrainings import WeightRules, provide_checkpoints
from nnunet_invariance.evaluation.protocols.splits import Subset, require_disjoint
from nnunet_invariance.evaluation.runner.comparison import Comparison, run_comparison
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet
from nnunet_invariance.evaluation.runner.tree import link
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.modality_translation.evaluate import SCORES, evaluate_translation
from nnunet_invariance.modality_translation.translator import load_translator
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, FINAL, pretraining_folder

CONFIGURATION, PLANS = "3d_fullres", "nnUNetPlans_cpu"
BASE_FEATURES, BATCH_SIZE, VAL_ITERATIONS = 8, 2, 1
LEARNING_RATE = 1e-3  # of the pre-trainings: a few hundred steps need more than the default
#: A part needs the parts before it; the ablations need only the first.
PARTS = ("pretraining", "transfer", "segmentation", "ablation", "ablation-dice")
RESULTS = Path(__file__).parents[1] / "results" / "puir-real"


def main() -> int:
    """Run every part that is not finished; returns the exit status."""
    parser = study_parser(__doc__, RESULTS)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:4]), help="in their order")
    parser.add_argument("--draws", type=int, default=1, choices=range(1, DRAWS + 1), help="who is trained on")
    parser.add_argument("--all-subsets", action="store_true", help="of pgbm, too: 63")
    parser.add_argument("--pretraining-steps", type=int, default=150, help="of each pre-training")
    parser.add_argument("--transfer-steps", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=8, help="of every segmentation training")
    parser.add_argument("--iterations", type=int, default=25, help="steps an epoch")
    parser.add_argument("--seed", type=int, default=0, help="of networks and augmentation")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    torch.set_num_threads(1)
    try:
        for draw in range(args.draws):
            for name in args.sets:
                run(Draw(name, draw, SETS[name](args.data, args.work / "nnUNet_raw", draw), args))
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args.work, args.out)
    return 0


@dataclass(frozen=True)
class Draw:
    """A data set with one of its patients for training, and the command-line arguments."""

    name: str
    number: int
    task: Task
    args: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Folder of logs, translations, scores and the comparison."""
        return self.args.work / f"{self.name}{self.number}"

    @property
    def raw(self) -> Path:
        """Folder of the raw data set; the test patient is in imagesTs and labelsTs."""
        return self.args.work / "nnUNet_raw" / self.task.dataset

    @property
    def where(self) -> list[str]:
        """Data set, configuration, plans and device, as command-line arguments."""
        return [self.task.dataset, CONFIGURATION, "-p", PLANS, "-device", self.args.device]

    def planned(self) -> PlannedDataset:
        """The data set with the CPU-sized plans."""
        return open_planned_dataset(self.task.dataset, CONFIGURATION, PLANS)

    def test_cases(self) -> list[LabelledCase]:
        """All visits of the test patient."""
        return list(test_folder_cases(self.raw, self.planned().dataset_json).values())

    def subsets(self) -> list[tuple[int, ...]]:
        """Subsets of the modalities on which segmentation is tested."""
        words = None if self.args.all_subsets else self.task.subsets
        return choose_subsets(self.planned().channel_names, words)

    def checkpoint(self, without: str = "") -> Path:
        """Checkpoint of the pre-training with all constraints or without one."""
        results = self.folder / f"without_{without}" if without else self.args.work / "nnUNet_results"
        return results / self.task.dataset / "pretraining" / f"puir__{PLANS}__{CONFIGURATION}" / FINAL


def run(draw: Draw) -> None:
    """Run the requested parts that are not finished."""
    draw.folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(draw.folder)
    write_plans(draw, steps)
    chosen = draw.args.parts
    for part, does in (
        ("pretraining", pretrain),
        ("transfer", transfer),
        ("segmentation", segment),
        ("ablation", ablate),
        ("ablation-dice", segment_ablated),
    ):
        if part in chosen:
            does(draw, steps)
            publish(draw.args.work, draw.args.out)


def write_plans(draw: Draw, steps: Steps) -> None:
    """Plan and preprocess the training patient, and write a CPU-sized copy of the plans."""
    entry = steps.plan(draw.task.dataset, CONFIGURATION)
    changes = cpu_sized(entry, draw.task.patch_size, BASE_FEATURES, BATCH_SIZE)
    args = draw.args
    block = {"iterations_per_epoch": args.iterations, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": args.seed}
    write_plans_copy(draw.task.dataset, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)


def pretrain(draw: Draw, steps: Steps, without: str = "") -> None:
    """Pre-train PUIR, with all constraints or without one, and measure it on the test patient."""
    checkpoint, words = draw.checkpoint(without), [f"{CONSTRAINTS[without]}=0"] if without else []
    environment = {"nnUNet_results": str(draw.folder / f"without_{without}")} if without else {}
    name = f"without {without}" if without else FULL
    command = ["nnunet-invariance", "pretrain", "puir", *draw.where]
    command += run_length(checkpoint.parent, draw.args.pretraining_steps, 5, draw.args.seed)
    words += [f"lr={LEARNING_RATE}", "workers=1"]
    steps.run(f"pretrain_{name.replace(' ', '_')}", [*command, "--set", *words], environment=environment)
    file = draw.folder / "held_out.json"
    if name not in (found := read_json(file, default={})):
        planned = draw.planned()
        found[name] = held_out_quantities(planned, checkpoint, held_out_crops(planned, draw.test_cases()))
        write_json(file, found)


def transfer(draw: Draw, steps: Steps) -> None:
    """Train a translation, score it and two baselines (source and blank image), and fill missing modalities."""
    folder = pretraining_folder("puir_translation", draw.task.dataset, PLANS, CONFIGURATION)
    length = run_length(folder, draw.args.transfer_steps, 5, draw.args.seed)
    words = ["--set", f"lr={LEARNING_RATE}", "workers=1"]
    steps.run("transfer_train", ["nnunet-invariance", "translate", "train", *draw.where, *length, *words])
    images, sources = draw.raw / "imagesTs", draw.task.sources
    where = [*draw.where, "-i", os.path.relpath(images, draw.folder), "-o"]
    command = ["nnunet-invariance", "translate", "evaluate", *where, "transferred", "--from", *sources]
    steps.run("transfer_evaluate", command)
    planned = draw.planned()
    for name, factor in (("copied", 1.0), ("blank", 0.0)):
        if not (draw.folder / name / SCORES).is_file():
            model = replace(load_translator(planned, device="cpu"), network=Average(factor), device=torch.device("cpu"))
            evaluate_translation(model, images, draw.folder / name, choose_subsets(planned.channel_names, sources))
    for subset in draw.task.replaced:
        name = f"filled_from_{subset}"
        if name not in steps.done:
            shutil.rmtree(draw.folder / name, ignore_errors=True)
        command = ["nnunet-invariance", "translate", "predict", *where, name, "--keep", "--from", *subset.split(JOIN)]
        steps.run(name, command)


def segment(draw: Draw, steps: Steps, arms: Sequence[Arm] = (), contrasts: Sequence[Contrast] = ()) -> None:
    """Run all arms and ``arms``, tested on every subset and on the subsets with synthesised modalities."""
    planned, cases = draw.planned(), draw.test_cases()
    trained = tuple(sorted(path.name.split(".")[0] for path in (draw.raw / "labelsTr").iterdir()))
    # One patient cannot be split: nnU-Net validates on a training case, which has no effect here.
    subset = Subset(len(trained), draw.number, trained, trained[:1])
    names = [f"{name}_{draw.args.epochs}epochs" for name in ("PUIRTrainer", "PUIRTrainer_scratch")]
    baselines = [f"{name}_{draw.args.epochs}epochs" for name in ("ChannelDropoutTrainer", "BaselineTrainer")]
    own = tuple(Arm(name, name) for name in (*names, *baselines))
    pairs = [Contrast(names[0], name, name) for name in (*names[1:], *baselines)]
    require_disjoint([case.name for case in cases], [subset])
    out = draw.folder / "comparison"
    everything = (*arms, *own)
    rules = WeightRules([case.name for case in cases])
    checkpoints, _ = provide_checkpoints(planned, everything, out, draw.args.device, rules)
    missing = missing_modalities(planned.channel_names, draw.subsets(), planned.dataset_json["file_ending"])
    tests = [*missing(cases, out), *(_filled(draw, cases, name) for name in draw.task.replaced)]
    comparison = Comparison(
        PROTOCOL,
        planned,
        everything,
        [subset],
        tests,
        checkpoints,
        draw.args.seed,
        draw.args.device,
        mirroring=False,
        contrasts=[*pairs, *contrasts],
    )
    run_comparison(comparison, out)


def _filled(draw: Draw, cases: Sequence[LabelledCase], subset: str) -> CaseSet:
    """The test cases with some real modalities and all others synthesised from them."""
    folder = draw.folder / f"filled_from_{subset}"
    return CaseSet(
        f"{subset}{FILLED}",
        [replace(case, images=tuple(folder / path.name for path in case.images)) for case in cases],
    )


def ablate(draw: Draw, steps: Steps) -> None:
    """Pre-train without each of the constraints."""
    for constraint in CONSTRAINTS:
        pretrain(draw, steps, constraint)


def segment_ablated(draw: Draw, steps: Steps) -> None:
    """Run PUIRTrainer from each pre-training that lacks a constraint, together with the other arms."""
    trainer, arms = f"PUIRTrainer_{draw.args.epochs}epochs", []
    for name in CONSTRAINTS:
        checkpoint = draw.checkpoint(name)
        named = checkpoint.with_name(
            f"without_{name}{checkpoint.suffix}"
        )  # a record identifies checkpoints by their names
        link(checkpoint, named)
        arms.append(Arm(named.stem, trainer, {ENVIRONMENT_VARIABLE: str(named)}))
    segment(draw, steps, arms, [Contrast(arm.name, trainer, FULL) for arm in arms])


if __name__ == "__main__":
    sys.exit(main())
