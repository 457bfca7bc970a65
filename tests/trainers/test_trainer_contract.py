"""The contract of every trainer of the registry: names, training, resuming, prediction, protected steps, refusals."""

import copy
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

import nnunet_invariance.trainers
from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.errors import NonFiniteLossError, UnsupportedConfigurationError
from nnunet_invariance.registry import TrainerEntry, trainers
from nnunet_invariance.trainers.pretrained import PretrainedTrainer
from tests.helpers.tiny_trainers import assert_same, make_trainer, values

ENTRIES = [pytest.param(entry, id=name) for name, entry in trainers().items()]
#: Smaller than the defaults, so that a step takes a fraction of a second.
OPTIONS = {
    "seed": 1, "aux_weight": 0.1, "aux_ramp": 0.0, "style_views": "pair", "warmup": 0.0, "num_positions": 64,
    "prior": 4, "equivariance_probability": 1.0,
}  # fmt: skip


def untrained_name(entry: TrainerEntry, suffix: str = "") -> str:
    """Name of the form of a trainer that needs no pre-trained weights."""
    return f"{entry.name}{'_scratch' if entry.has_scratch_twin else ''}{suffix}"


class Trained(NamedTuple):
    """A trainer after two epochs, its data set, and the state of the same run after an interruption."""

    entry: TrainerEntry
    trainer: Any
    dataset: Any
    resumed: Any


def keep_first_epoch(trainer: Any, copy_to: Path) -> None:
    """Copy the checkpoint of the first epoch, as a run that was interrupted there would leave it."""

    def start() -> None:
        if trainer.current_epoch == 1:
            shutil.copy(Path(trainer.output_folder, "checkpoint_latest.pth"), copy_to)
        type(trainer).on_epoch_start(trainer)

    trainer.on_epoch_start = start


@pytest.fixture(scope="module", params=ENTRIES)
def trained(
    request: pytest.FixtureRequest, tiny: Any, modalities: Any, tmp_path_factory: pytest.TempPathFactory, device: Any
) -> Iterator[Trained]:
    """Each trainer, trained without and with an interruption."""
    entry: TrainerEntry = request.param
    dataset = modalities if entry.load().least_channels > 1 else tiny
    name = untrained_name(entry, "_2epochs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("resumed")))
        resumed = make_trainer(dataset, name, device=device, **OPTIONS)
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("straight")))
        straight = make_trainer(dataset, name, device=device, **OPTIONS)
        keep_first_epoch(straight, Path(resumed.output_folder, "checkpoint_latest.pth"))
        straight.run_training()
        maybe_load_checkpoint(resumed, continue_training=True, validation_only=False)
        assert resumed.current_epoch == 1
        resumed.run_training()
        yield Trained(entry, straight, dataset, resumed)


def final_checkpoint(trainer: Any) -> dict[str, Any]:
    """Content of the final checkpoint without clock times; opens only if it holds no code."""
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    checkpoint["logging"] = {k: v for k, v in checkpoint["logging"].items() if "timestamps" not in k}
    return checkpoint


# ---- names and classes -----------------------------------------------------------------------------------------------


def test_every_trainer_of_the_package_is_in_the_registry():
    for entry in trainers().values():
        entry.load()
    known = {entry.load() for entry in trainers().values()}
    bases = {getattr(nnunet_invariance.trainers, name) for name in nnunet_invariance.trainers.BASES}

    def subclasses(cls: type) -> set[type]:
        return {cls}.union(*map(subclasses, cls.__subclasses__()))

    of_package = {c for c in subclasses(nnUNetTrainer) if c.__module__.startswith("nnunet_invariance.trainers.")}
    assert of_package == known | bases
    assert {*nnunet_invariance.trainers.__all__} == {*trainers(), *nnunet_invariance.trainers.BASES}


@pytest.mark.parametrize("entry", ENTRIES)
def test_names_give_twin_and_length(entry: TrainerEntry):
    trainer = find_trainer(entry.name)
    assert trainer is entry.load()
    assert find_trainer(f"{entry.name}_3epochs").length_in_epochs == 3
    assert find_trainer(f"{entry.name}_1epoch").length_in_epochs == 1
    twin = find_trainer(f"{entry.name}_scratch_3epochs")
    if entry.has_scratch_twin:
        assert issubclass(trainer, PretrainedTrainer)
        assert not trainer.scratch
        assert twin.scratch
        assert twin.length_in_epochs == 3
    else:
        assert twin is None
        assert not issubclass(trainer, PretrainedTrainer)


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_trainer_derives_from_the_trainer_of_another_method(entry: TrainerEntry):
    methods = {base.__dict__["method"] for base in entry.load().__mro__ if "method" in base.__dict__}
    assert len(methods) <= 1
    assert entry.method is None or methods == {entry.method}


# ---- training, resuming, prediction ----------------------------------------------------------------------------------


def test_two_epochs_train(trained: Trained):
    trainer = trained.trainer
    assert trainer.current_epoch == trainer.num_epochs == 2
    curves = trainer.logger.get_checkpoint()
    assert {len(curve) for curve in curves.values()} == {2}
    assert all(math.isfinite(loss) for name in curves if name.startswith(("train_", "val_")) for loss in curves[name])
    checkpoint = final_checkpoint(trainer)
    assert checkpoint["trainer_name"] == untrained_name(trained.entry, "_2epochs")
    assert checkpoint["nnunet_invariance"]["options"] == trainer.options.to_dict()
    assert not Path(trainer.output_folder, "checkpoint_latest.pth").exists()


def test_an_interrupted_run_ends_as_an_undisturbed_one(trained: Trained, device: torch.device):
    if device.type != "cpu":
        pytest.skip("bit-exact on the CPU only")
    assert_same(final_checkpoint(trained.resumed), final_checkpoint(trained.trainer))


def test_prediction_builds_the_network_and_loads_it_strictly(trained: Trained, device: torch.device):
    trainer, checkpoint = trained.trainer, final_checkpoint(trained.trainer)
    folder = Path(nnUNetTrainer.__module__.replace(".", "/")).parent
    cls = recursive_find_python_class(str(folder), checkpoint["trainer_name"], "nnunetv2.training.nnUNetTrainer")
    assert cls is type(trainer)
    managers, channels = (trainer.plans_manager, trainer.configuration_manager), trainer.num_input_channels
    heads = trainer.label_manager.num_segmentation_heads
    network = cls.build_network_architecture(*managers, channels, heads, enable_deep_supervision=False).to(device)
    network.load_state_dict(checkpoint["network_weights"], strict=True)
    trainer.set_deep_supervision_enabled(False)
    image = torch.rand(1, channels, 32, 32, 32, device=device)
    with torch.no_grad():
        expected = trainer.plain_network.eval()(image)
        torch.testing.assert_close(network.eval()(image), expected)
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)


# ---- protected steps -------------------------------------------------------------------------------------------------


def state(trainer: Any) -> dict[str, Any]:
    """Everything that a step may change."""
    modules = trainer.trained_modules()
    return copy.deepcopy(
        {
            "parameters": [values(module) for module in modules],
            "buffers": [dict(module.named_buffers()) for module in modules],
            "momentum": trainer.optimizer.state_dict()["state"],
        }
    )


def test_a_step_with_non_finite_gradients_changes_nothing_and_five_stop_the_run(trained: Trained, device: torch.device):
    if device.type != "cpu":
        pytest.skip("nnU-Net's scaler skips the step on CUDA")
    trainer = copy.copy(trained.trainer)
    trainer.on_train_epoch_start()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.01  # the schedule has ended at 0
    batch = next(trained.resumed.dataloader_train)
    parameter = next(p for p in trainer.optimizer.param_groups[0]["params"] if p.requires_grad and p.grad is not None)
    handle = parameter.register_hook(lambda gradient: gradient * math.inf)
    before = state(trainer)
    try:
        for number in range(1, 5):
            losses = trainer.train_step(copy.deepcopy(batch))
            assert math.isfinite(losses["loss"])
            assert trainer.guard.in_epoch == number
        assert_same(state(trainer), before)
        with pytest.raises(NonFiniteLossError, match="gradients were not finite in 5 steps in a row"):
            trainer.train_step(copy.deepcopy(batch))
        assert_same(state(trainer), before)
    finally:
        handle.remove()
    kept = parameter.detach().clone()
    trainer.train_step(batch)
    assert trainer.guard.in_epoch == 5
    assert not torch.equal(parameter, kept)


def test_no_checkpoint_with_a_non_finite_tensor_is_written(trained: Trained, tmp_path: Path):
    trainer, file = trained.resumed, tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    content = file.read_bytes()
    parameter = next(trainer.plain_network.parameters())
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.view(-1)[0] = math.nan
    try:
        with pytest.raises(NonFiniteLossError, match=r"checkpoint_latest.pth was not written, because network_weights"):
            trainer.save_checkpoint(str(file))
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
    assert file.read_bytes() == content


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
def test_unsupported_plans_are_refused_and_leave_nothing(entry: TrainerEntry, tiny, modalities, results):
    trainer = entry.load()
    dataset = modalities if trainer.least_channels > 1 else tiny
    if trainer.dimensions and 2 not in trainer.dimensions:
        with pytest.raises(UnsupportedConfigurationError, match="3d configurations without a cascade, but 2d"):
            make_trainer(dataset, untrained_name(entry), configuration="2d")
    if trainer.dimensions:
        plans = copy.deepcopy(dataset.plans)
        plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
        with pytest.raises(UnsupportedConfigurationError, match="the second stage of a cascade"):
            make_trainer(dataset, untrained_name(entry), plans, "second")
    if trainer.least_channels > 1:
        with pytest.raises(UnsupportedConfigurationError, match=f"one channel, MRI; {entry.name}.* needs at least 2"):
            make_trainer(tiny, untrained_name(entry))
    assert not list(results.parent.iterdir())


@pytest.mark.parametrize("entry", ENTRIES)
def test_supported_dimensions_are_accepted(entry: TrainerEntry, tiny, modalities, results):
    dataset = modalities if entry.load().least_channels > 1 else tiny
    for configuration in ("3d_fullres", "2d"):
        dimensions = entry.load().dimensions or (2, 3)
        if int(configuration[0]) in dimensions:
            assert make_trainer(dataset, untrained_name(entry), configuration=configuration).options is not None
    assert json.dumps(entry.load().options_class().to_dict())
