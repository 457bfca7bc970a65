"""`pretrain mae` and MAETrainer, in the same loop and with the same base class as the other methods."""

import json

import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.masking import cell_statistics
from nnunet_invariance.errors import WeightsNotFoundError
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.networks.stock import plain_conv_unet
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.mae import MAE, MAEOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_trainers import make_trainer, values


def test_pretrained_weights_are_in_the_trainer(tiny, results):
    settings = ["epochs=2", "iterations=6", "lr=3e-3", "workers=0"]
    path = run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=settings)
    checkpoint = load_checkpoint(path)
    assert {name.split(".")[0] for name in checkpoint.tensors} == {"network"}
    assert checkpoint.metadata["method"] == "mae"
    history = checkpoint.metadata["progress"]["history"]
    assert history[1]["mim"] < history[0]["mim"]
    trainer = make_trainer(tiny, "MAETrainer_1epoch", seed=1)
    trainer.on_train_start()
    pretrained = checkpoint.section("network")
    for name, value in values(trainer.plain_network).items():
        if name.startswith("encoder."):
            assert torch.equal(value, pretrained[name]), name
    report = json.loads(
        (results / "MAETrainer_1epoch__nnUNetPlans__3d_fullres/fold_0/transfer_report.json").read_text()
    )
    assert report["coverage"] == 1.0
    assert report["branch"] == "student"


def test_a_run_is_continued(tiny, results):
    settings = ["epochs=1", "iterations=2", "workers=0"]
    first = run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=settings)
    assert run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=settings, resume=True) == first


def test_no_weights_and_no_auxiliary_loss(tiny, results):
    with pytest.raises(WeightsNotFoundError, match="pretrain mae"):
        make_trainer(tiny, "MAETrainer_1epoch").on_train_start()
    make_trainer(tiny, "MAETrainer_scratch_1epoch")  # needs none


@pytest.mark.parametrize(("shape", "cell"), [((2, 3, 8, 6), (4, 2)), ((1, 2, 4, 6, 8), (2, 3, 4))])
def test_statistics_of_cells_are_those_of_a_loop(shape, cell):
    image = 1000 + torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image[..., : cell[-1]] = 7.0  # a flat column of cells
    mean, deviation = cell_statistics(image, cell, floor=0.2)
    for b, c in np.ndindex(*shape[:2]):
        whole = image[b, c].double().std(correction=0)
        for place in np.ndindex(*(n // size for n, size in zip(shape[2:], cell, strict=True))):
            region = (b, c, *(slice(i * size, (i + 1) * size) for i, size in zip(place, cell, strict=True)))
            values = image[region].double()
            expected = (values.var(correction=0) + (0.2 * whole) ** 2).sqrt()
            torch.testing.assert_close(mean[region].double(), values.mean().expand_as(values), rtol=1e-5, atol=0)
            torch.testing.assert_close(deviation[region].double(), expected.expand_as(values), rtol=1e-3, atol=0)


def test_a_cell_of_low_contrast_counts_as_much_as_one_of_high_contrast():
    """A network that restores half of the contrast of one hidden cell makes the same error in both cells."""
    setup = Setup(Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1), (8, 8, 8), (1.0, 1.0, 1.0), 1, True, ())
    pattern = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = {}
    for target in ("intensity", "cell"):
        method = MAE(setup, MAEOptions(target=target))
        edge = 8 // method.cell[2]
        contrast = torch.ones(8)
        contrast[: 8 // edge] = 100.0
        image = pattern * contrast
        for low in (False, True):
            hidden = (torch.ones_like(pattern) * (contrast == (1.0 if low else 100.0))).bool()
            mean, deviation = cell_statistics(image, method.cell, floor=0.0)
            restored = (image - mean) / (2 * deviation) if target == "cell" else (image + mean) / 2
            method.network.forward = lambda _, restored=restored: restored
            views = {"student": image, "image": image, "hidden": hidden}
            errors[target, low] = float(method(views, 0.0).losses["mim"])
            panels = method.picture(views)
            assert len(panels) > 1
    assert errors["intensity", False] > 100 * errors["intensity", True]
    assert errors["cell", False] == pytest.approx(0.25, abs=0.02)
    assert errors["cell", True] == pytest.approx(0.25, abs=0.15)  # the floor damps it
