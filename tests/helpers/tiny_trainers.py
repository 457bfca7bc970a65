"""Our trainers on the tiny data set in this process, with two iterations per epoch."""

import json
from pathlib import Path

import torch

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.trainers.stepping import views_on_device
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint
from nnunet_invariance.weights.locate import FINAL, pretraining_folder
from tests.helpers import small_checkpoints
from tests.helpers.tiny_dataset import cut_down

CONFIGURATION = "3d_fullres"


def make_trainer(
    tiny, name: str, plans: dict | None = None, configuration: str = CONFIGURATION, device: str = "cpu", **options
):
    """A trainer as `nnUNetv2_train` makes it."""
    plans = plans or cut_down(
        tiny.plans, "nnUNetPlans", **{"iterations_per_epoch": 2, "val_iterations_per_epoch": 1, **options}
    )
    dataset = json.loads((tiny.preprocessed / tiny.name / "dataset.json").read_text())
    trainer = find_trainer(name)
    return trainer({**plans, "continue_training": False}, configuration, 0, dataset, torch.device(device))


def started(tiny, name, plans: dict | None = None, configuration: str = CONFIGURATION, **options):
    """A trainer just before its first step, and a batch."""
    trainer = make_trainer(tiny, name, plans, configuration, **{"seed": 1, "aux_ramp": 0.0, "warmup": 0.0, **options})
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer, next(trainer.dataloader_train)


def write_weights(tiny, path: Path | None = None, **changes) -> Checkpoint:
    """Write a finished Alice pre-training of the tiny plans, at `path` or where a trainer searches it."""
    path = path or pretraining_folder("alice", tiny.name, "nnUNetPlans", CONFIGURATION) / FINAL
    planned = Architecture.from_plans(tiny.plans["configurations"][CONFIGURATION]["architecture"], 1, 3)
    return load_checkpoint(small_checkpoints.write(path, planned, **changes))


def values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_same(first, second, path: str = "") -> None:
    """Assert that two values, which may be nested containers, are equal bit by bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second or first != first, path  # NaN counts as equal to itself


def log_of(trainer) -> str:
    """Content of the trainer's log file."""
    return Path(trainer.log_file).read_text()


def with_views(trainer, batch: dict) -> dict:
    """The batch as the losses get it, with its views taken apart."""
    return views_on_device(batch, trainer.num_input_channels, trainer.device)
