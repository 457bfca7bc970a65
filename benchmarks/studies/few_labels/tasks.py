"""The data sets of the study: test persons kept apart, unlabelled images, and CPU-sized plans."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Steps, cpu_sized
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.runner.tree import link
from nnunet_invariance.plans.copies import write_plans_copy

CONFIGURATION, STOCK_PLANS, PLANS = "3d_fullres", "nnUNetPlans", "few"
BASE_FEATURES, BATCH_SIZE = 16, 2
EPOCHS, VAL_ITERATIONS = 20, 2


@dataclass(frozen=True)
class Task:
    """A data set of the study.

    Attributes:
        n_test: number of test cases, of whole persons.
        patch_size: largest training patch in voxels, in the order of the plans.
        person: the person of a case, by the case's name.
        unlabelled: folder with further images of the same kind; None: the images of the training pool are used.
        unlike: unlabelled images that are left out because they show a person with labels.
        precision: of all trainings. bf16 halves the time, but corrupts memory with some patches (docs/trainers.md).
    """

    dataset: str
    n_test: int
    patch_size: Sequence[int]
    person: Callable[[str], str] = str
    unlabelled: str | None = None
    unlike: Sequence[str] = ()
    precision: str = "bf16"

    @property
    def identifier(self) -> str:
        """The number of the data set, as in nnU-Net's commands."""
        return str(int(self.dataset[7:10]))


#: Five persons of the brain data set were scanned twice.
SECOND_SCANS = {f"brain_10{20 + n}": f"brain_10{n:02d}" for n in (3, 4, 5, 18, 19)}
TASKS = {
    "hippocampus": Task("Dataset004_Hippocampus", 60, (32, 56, 40)),
    "acdc": Task("Dataset911_ACDC", 20, (10, 96, 96), lambda case: case.partition("_frame")[0]),
    "openkbp": Task("Dataset910_OpenKBP", 16, (40, 48, 48), unlabelled="unlabelled_openkbp"),
    "brain": Task("Dataset913_BrainTissue", 8, (48, 48, 48), lambda case: SECOND_SCANS.get(case, case)),
    "left_atrium": Task("Dataset901_LA2018", 6, (40, 64, 64), unlabelled="unlabelled_la", unlike=("la_043", "la_003")),
    "myops": Task("Dataset912_MyoPS", 10, (4, 80, 80), unlabelled="unlabelled_myops", precision="fp32"),
}


def lay_out(task: Task, data: Path, work: Path, seed: int) -> None:
    """Link the raw data into ``work``, with the test cases in imagesTs, and the unlabelled images into ``unlabelled``.

    Raises:
        ComparisonError: the data set is not in ``data``.
    """
    source, raw = data / task.dataset, work / "nnUNet_raw" / task.dataset
    if not (source / "dataset.json").is_file():
        raise ComparisonError(f"{source} has no dataset.json. Give the folder of the raw data sets with --data.")
    if (raw / "dataset.json").is_file():
        return
    described = read_json(source / "dataset.json")
    ending, channels = described["file_ending"], range(len(described["channel_names"]))
    cases = sorted(path.name.removesuffix(ending) for path in (source / "labelsTr").glob(f"*{ending}"))
    test = test_cases(task, cases, seed)
    for case in cases:
        kind = "Ts" if case in test else "Tr"
        for name in (f"{case}_{channel:04d}{ending}" for channel in channels):
            link(source / "imagesTr" / name, raw / f"images{kind}" / name)
            if kind == "Tr" and not task.unlabelled:
                link(source / "imagesTr" / name, unlabelled_folder(task, work) / name)
        link(source / "labelsTr" / f"{case}{ending}", raw / f"labels{kind}" / f"{case}{ending}")
    for path in sorted((data / task.unlabelled).glob(f"*{ending}")) if task.unlabelled else ():
        if path.name.rsplit("_", 1)[0] not in task.unlike:
            link(path, unlabelled_folder(task, work) / path.name)
    write_json(raw / "dataset.json", {**described, "numTraining": len(cases) - len(test)})


def test_cases(task: Task, cases: Sequence[str], seed: int) -> set[str]:
    """At least ``n_test`` cases: all cases of persons that are sampled by seed."""
    persons = sorted({task.person(case) for case in cases})
    random.Random(f"{task.dataset} {seed}").shuffle(persons)
    test: set[str] = set()
    for name in persons:
        if len(test) < task.n_test:
            test |= {case for case in cases if task.person(case) == name}
    return test


def unlabelled_folder(task: Task, work: Path) -> Path:
    """Folder of the images that are used without labels."""
    return work / "unlabelled" / task.dataset


def plan(task: Task, work: Path, steps: Steps, iterations: int, seed: int) -> None:
    """Plan and preprocess the training pool, and write a CPU-sized copy of the plans."""
    command = ["nnUNetv2_plan_and_preprocess", "-d", task.identifier, "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    steps.run("plan", command)
    stock = read_json(work / "nnUNet_preprocessed" / task.dataset / f"{STOCK_PLANS}.json")
    changes = cpu_sized(stock["configurations"][CONFIGURATION], task.patch_size, BASE_FEATURES, BATCH_SIZE)
    block = {
        "iterations_per_epoch": iterations // EPOCHS,
        "val_iterations_per_epoch": VAL_ITERATIONS,
        "seed": seed,
        "precision": task.precision,
    }
    write_plans_copy(task.dataset, STOCK_PLANS, PLANS, CONFIGURATION, block, changes)
