"""AnatomixTrainer on the stock network and on the anatomix U-Net."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.losses.info_nce import SupervisedInfoNCE
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.networks.heads.projection import gather_positions, sample_positions
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.weights.checkpoint import save_checkpoint
from nnunet_invariance.weights.locate import FINAL, pretraining_folder
from tests.helpers.small_checkpoints import metadata
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import (
    CONFIGURATION,
    assert_same,
    log_of,
    make_trainer,
    started,
    values,
    with_views,
    write_weights,
)

pytestmark = pytest.mark.usefixtures("results")

UNET = Architecture(NETWORK, arch_kwargs("anatomix"), (), 1, 1)
SHORT = {"iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "aux_ramp": 0.0, "warmup": 0.0}


@pytest.fixture(scope="module")
def unet_file(tmp_path_factory) -> Path:
    """A finished `pretrain anatomix` of the U-Net, random values."""
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    torch.manual_seed(3)
    tensors = {f"network.{name}": tensor for name, tensor in unique_tensors(UNET.build()).items()}
    save_checkpoint(path, tensors, metadata(UNET, method="anatomix"))
    return path


def unet_plans(tiny, name: str = "AnatomixPlans", **options) -> dict:
    plans = cut_down(tiny.plans, name, **{**SHORT, "seed": 1, **options})
    entry = plans["configurations"][CONFIGURATION]
    entry["architecture"] = {
        "network_class_name": NETWORK, "arch_kwargs": arch_kwargs("anatomix"), "_kw_requires_import": []
    }  # fmt: skip
    return plans


def test_encoder_and_decoder_of_a_stock_network_are_loaded(tiny):
    checkpoint = write_weights(tiny, _pretraining(tiny), teacher=False, method="anatomix")
    trainer, _ = started(tiny, "AnatomixTrainer")
    section = checkpoint.section("network")
    own = {n: v for n, v in values(trainer.network).items() if "seg_layers" not in n}
    assert_same(own, {name: section[name] for name in own})
    assert trainer.transfer_report["coverage"] == 1
    assert trainer.transfer_report["decoder"] == "from the file"
    assert len(trainer.optimizer.param_groups) == 3
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {trainer.initial_lr}


def _pretraining(tiny) -> Path:
    return pretraining_folder("anatomix", tiny.name, "nnUNetPlans", CONFIGURATION) / FINAL


@pytest.mark.parametrize("second_view", ["intensity", "synthetic"])
def test_the_auxiliary_loss_is_supervised_info_nce_over_the_labels(tiny, second_view):
    trainer, batch = started(tiny, "AnatomixTrainer_scratch", second_view=second_view, num_positions=12)
    moved = with_views(trainer, batch)
    first, second = (trainer.network.encoder(view) for view in moved["views"][:2])
    state = trainer.generator.get_state()
    found = trainer.aux_losses(first, second, moved)["info_nce"]
    trainer.generator.set_state(state)
    (stage,) = trainer.stages
    size = first[stage].shape[2:]
    index, counts = sample_positions(moved["valid_mask"], size, trainer.options.num_positions, trainer.generator)
    rows, labels = [], []
    step = [32 // n for n in size]
    target = batch["target"][0].long()
    for sample in range(2):
        for n, position in enumerate(index[sample].tolist()):
            if not counts[sample, n]:
                continue
            z, y, x = np.unravel_index(position, size)
            centre = [int((place + 0.5) * s) for place, s in zip((z, y, x), step, strict=True)]
            for maps in (first, second):
                rows.append(gather_positions(maps[stage][sample : sample + 1], torch.tensor([[position]]))[0, 0])
                labels.append(target[(sample, 0, *centre)])
    embedded = torch.nn.functional.normalize(trainer.aux[f"projection_{stage}"](torch.stack(rows)), dim=-1)
    wanted = slow_supervised(embedded.double(), torch.stack(labels), trainer.options.temperature)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    losses = trainer.train_step(batch)
    assert all(np.isfinite(value) for value in losses.values())
    assert all(parameter.grad is not None for parameter in trainer.aux.parameters())
    assert isinstance(trainer.contrast, SupervisedInfoNCE)


def slow_supervised(z: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised InfoNCE, one anchor at a time."""
    total, anchors = 0.0, 0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            similar = z[others] @ z[i] / temperature
            total = (
                total + similar.exp().sum().log() - torch.stack([z[j] @ z[i] for j in positives]).mean() / temperature
            )
            anchors += 1
    return total / anchors


def test_the_synthetic_view_depends_on_the_labels_only(tiny):
    trainer, batch = started(tiny, "AnatomixTrainer_scratch", second_view="synthetic")
    moved = with_views(trainer, batch)
    moved["views"].valid_mask[:, :, :8] = 0  # as if padded
    state = trainer.generator.get_state()
    view = trainer.synthetic_view(moved, 2)
    image = moved["views"].second
    assert torch.equal(view[:, :, :8], image[:, :, :8])
    assert not torch.allclose(view[:, :, 8:], image[:, :, 8:], atol=0.1)
    assert not torch.equal(view, trainer.synthetic_view(moved, 2))  # sampled anew in every step
    trainer.generator.set_state(state)
    shuffled = image.flatten(2)[..., torch.randperm(32**3, generator=torch.Generator().manual_seed(0))].view_as(image)
    other = {**moved, "views": moved["views"]._replace(second=shuffled)}
    again = trainer.synthetic_view(other, 2)
    # Shuffled voxels have the same moments: inside the image the view depends on the labels only.
    torch.testing.assert_close(again[:, :, 8:], view[:, :, 8:], rtol=1e-3, atol=1e-3)
    assert trainer.synthetic_view(moved, 1).shape[0] == 1


def test_the_unet_is_trained_from_its_checkpoint(tiny, unet_file):
    trainer, batch = started(tiny, "AnatomixTrainer", unet_plans(tiny, checkpoint=str(unet_file)))
    assert trainer.transfer_report["coverage"] == 1
    assert trainer.transfer_report["missing"] == []
    assert trainer.network.decoder.deep_supervision
    norm = trainer.network.encoder.model["1"]
    statistics = norm.running_mean.clone()
    with torch.no_grad():
        trainer.second_pass(batch["data"][:, :1] * 3)
    assert torch.equal(norm.running_mean, statistics)
    before = values(trainer.network)
    losses = trainer.train_step(batch)
    assert not torch.equal(norm.running_mean, statistics)
    assert all(np.isfinite(value) for value in losses.values())
    changed = [name for name, value in values(trainer.network).items() if not torch.equal(value, before[name])]
    assert len(changed) > 0.9 * len(before)
    assert "WARNING: the weights were trained on images in [0, 1]" in log_of(trainer)


def test_prediction_builds_the_saved_network_from_the_plans(tiny):
    trainer = make_trainer(tiny, "AnatomixTrainer_scratch", unet_plans(tiny))
    trainer.initialize()
    managers = trainer.plans_manager, trainer.configuration_manager
    rebuilt = type(trainer).build_network_architecture(*managers, 1, 3, enable_deep_supervision=False)
    rebuilt.load_state_dict(trainer.network.state_dict(), strict=True)
    trainer.set_deep_supervision_enabled(False)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(image), trainer.network.eval()(image))


def test_unsupported_plans_are_refused_and_leave_no_files(tiny, results):
    plans = unet_plans(tiny)
    plans["configurations"][CONFIGURATION]["patch_size"] = [24, 32, 32]
    with pytest.raises(UnsupportedConfigurationError, match=r"The nearest that fits is \[32, 32, 32\]"):
        make_trainer(tiny, "AnatomixTrainer", plans)
    assert not results.exists()
