"""The arms of the study: a trainer, its options, and the pre-training that it starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Steps
from benchmarks.studies.few_labels.tasks import CONFIGURATION, EPOCHS, PLANS, Task, unlabelled_folder
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.weights.locate import FINAL

AUTO = {"mirroring": "auto"}
SUMMED = {**AUTO, "head": "summed", "transfer": "encoder+decoder", "aux": False}
STOCK_HEAD = {**AUTO, "head": "stock", "transfer": "encoder+decoder", "aux": False}
ENCODER = {**AUTO, "head": "summed", "transfer": "encoder", "aux": False}
TEACHER = {"unlabelled": {"mix": False}}
MIXED = {"unlabelled": {"mix": True}}
STYLED = {**SUMMED, "aux": True, "style_views": "single", "style_probability": 0.5}
CLUSTERS = {**STYLED, "style": "clusters"}


@dataclass(frozen=True)
class Recipe:
    """An arm of the study.

    Attributes:
        method: the pre-training whose checkpoint it loads; None: random weights.
        options: options of the plans block; ``unlabelled`` without the task's folder of unlabelled images.
    """

    trainer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None


RECIPES = {
    "plain": Recipe("BaselineTrainer"),
    "plain-auto": Recipe("BaselineTrainer", AUTO),
    "plain-none": Recipe("BaselineTrainer", {"mirroring": []}),
    "plain-unlabelled": Recipe("BaselineTrainer", {**AUTO, **TEACHER}),
    "random-summed": Recipe("DenseTrainer_scratch", SUMMED),
    "mae-summed": Recipe("MAETrainer", SUMMED, "mae"),
    "dense-summed": Recipe("DenseTrainer", SUMMED, "dense"),
    "dense-stock": Recipe("DenseTrainer", STOCK_HEAD, "dense"),
    "dense-encoder": Recipe("DenseTrainer", ENCODER, "dense"),
    "mae-encoder": Recipe("MAETrainer", ENCODER, "mae"),
    "mae-warm": Recipe("MAETrainer", {**SUMMED, "warmup": 0.2}, "mae"),
    "mae-frozen": Recipe("MAETrainer", {**SUMMED, "frozen_epochs": 2}, "mae"),
    "mae-slow": Recipe("MAETrainer", {**SUMMED, "encoder_lr_factor": 0.3}, "mae"),
    "mae-stock": Recipe("MAETrainer", STOCK_HEAD, "mae"),
    "alice-summed": Recipe("AliceTrainer", {**SUMMED, "branch": "student"}, "alice"),
    "anatomix-summed": Recipe("AnatomixTrainer", SUMMED, "anatomix"),
    "mae-unlabelled": Recipe("MAETrainer", {**SUMMED, **TEACHER}, "mae"),
    "mae-mixed": Recipe("MAETrainer", {**SUMMED, **MIXED}, "mae"),
    "random-mixed": Recipe("DenseTrainer_scratch", {**SUMMED, **MIXED}),
    "random-styled": Recipe("ICMSegTrainer_scratch", STYLED),
    "random-clusters": Recipe("ICMSegTrainer_scratch", CLUSTERS),
    "mae-styled": Recipe("ICMSegTrainer", STYLED, "mae"),
    "anatomix-styled": Recipe("ICMSegTrainer", STYLED, "anatomix"),
    "anatomix-clusters": Recipe("ICMSegTrainer", CLUSTERS, "anatomix"),
    "dense-unlabelled": Recipe("DenseTrainer", {**SUMMED, **TEACHER}, "dense"),
}
#: Options of `pretrain METHOD --set`; the steps take about equally long for all methods.
PRETRAINING: dict[str, Sequence[str]] = {
    "mae": ("epochs=24", "iterations=50", "lr=1e-3"),
    "dense": ("epochs=12", "iterations=50"),
    "alice": ("epochs=12", "iterations=50"),
    "anatomix": ("epochs=24", "iterations=50", "lr=1e-3", "patch=32", "shapes=mixed"),
}


def write_arm(task: Task, work: Path, name: str, pretraining_seed: int, training_seed: int = 0) -> Arm:
    """Write the plans copy of an arm.

    One with pre-trained weights has the seed of the pre-training in its name; one with another seed of the training
    than the plans has that seed in its name, and shows the noise beside the arm without it.
    """
    recipe = RECIPES[name]
    options = dict(recipe.options)
    if "unlabelled" in options:
        options["unlabelled"] = {"images": [str(unlabelled_folder(task, work))], **options["unlabelled"]}
    if recipe.method:
        name = f"{name}-s{pretraining_seed}"
        options["checkpoint"] = str(pretraining_folder(task, work, recipe.method, pretraining_seed) / FINAL)
    if training_seed:
        name, options["seed"] = f"{name}-t{training_seed}", training_seed
    plans = f"{PLANS}_{name}"
    write_plans_copy(task.dataset, PLANS, plans, CONFIGURATION, options)
    return Arm(name, f"{recipe.trainer}_{EPOCHS}epochs", plans=plans)


def pretraining_folder(task: Task, work: Path, method: str, seed: int) -> Path:
    """Folder of a pre-training; each seed has its own copy of the plans, whose name is in the folder's."""
    folder = work / "nnUNet_results" / task.dataset / "pretraining"
    return folder / f"{method}__{_seed_plans(seed)}__{CONFIGURATION}"


def pretrain(task: Task, work: Path, steps: Steps, method: str, seed: int) -> None:
    """Pre-train on the training pool and the unlabelled images; continues an interrupted run."""
    write_plans_copy(task.dataset, PLANS, _seed_plans(seed), CONFIGURATION)
    command = ["nnunet-invariance", "pretrain", method, task.dataset, CONFIGURATION, "-p", _seed_plans(seed)]
    command += ["-device", "cpu", "--seed", str(seed)]
    if task.unlabelled and method != "anatomix":
        command += ["--images", str(unlabelled_folder(task, work))]
    if any(pretraining_folder(task, work, method, seed).glob("checkpoint_*.safetensors")):
        command += ["--c"]
    steps.run(
        f"pretrain {method} {seed}",
        [*command, "--set", *PRETRAINING[method], "workers=0", f"precision={task.precision}"],
    )


def _seed_plans(seed: int) -> str:
    return f"{PLANS}_pretraining{seed}"
