"""nnU-Net's commands with AnatomixTrainer and MaskGenTrainer: the stock network, the anatomix U-Net, its features."""

import json

import pytest
import torch

from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
from nnunet_invariance.weights.checkpoint import save_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign
from tests.helpers.anatomix_files import write_released
from tests.helpers.commands import check_predictions, stock
from tests.helpers.small_checkpoints import metadata
from tests.helpers.tiny_dataset import cut_down

pytestmark = pytest.mark.commands
SHORT = {"iterations_per_epoch": 1, "val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def base(tiny) -> str:
    """Plans with one iteration per epoch; the tests copy them."""
    plans = cut_down(tiny.plans, "ShortPlans", **SHORT)
    (tiny.preprocessed / tiny.name / "ShortPlans.json").write_text(json.dumps(plans))
    return "ShortPlans"


def train_and_predict(tiny, trainer: str, plans: str, out) -> None:
    """Train one epoch, then predict in a new process."""
    name = f"{trainer}_1epoch"
    stock("nnUNetv2_train", "777", "3d_fullres", "0", "-p", plans, "-tr", name, "-device", "cpu")
    fold = tiny.results / tiny.name / f"{name}__{plans}__3d_fullres" / "fold_0"
    assert json.loads((fold / "transfer_report.json").read_text())["coverage"] == 1
    torch.load(fold / "checkpoint_final.pth", weights_only=True)
    where = ("-d", "777", "-c", "3d_fullres", "-f", "0", "-p", plans, "-tr", name)
    images = tiny.raw / tiny.name / "imagesTs"
    stock("nnUNetv2_predict", "-i", images, "-o", out, *where, "-device", "cpu", "--disable_tta")
    check_predictions(out)


@pytest.mark.slow
def test_the_stock_network(tiny, base, tmp_path):
    planned = Architecture.from_plans(tiny.plans["configurations"]["3d_fullres"]["architecture"], 1, 3)
    tensors = {f"network.{name}": tensor for name, tensor in unique_tensors(planned.build()).items()}
    file = tmp_path / "stock.safetensors"
    save_checkpoint(file, tensors, metadata(planned, method="anatomix"))
    fitted = fit_plans_to_checkpoint("777", file, base)
    assert fitted.trainer == "AnatomixTrainer"
    train_and_predict(tiny, fitted.trainer, fitted.path.stem, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_the_anatomix_unet(tiny, base, tmp_path, frozen):
    write_released(tmp_path / "anatomix.pth")
    checkpoint = import_foreign(tmp_path / "anatomix.pth")
    fitted = fit_plans_to_checkpoint("777", checkpoint, base, new_plans_name=f"Unet{frozen}", frozen_features=frozen)
    assert fitted.trainer == ("MaskGenTrainer" if frozen else "AnatomixTrainer")
    stock("nnUNetv2_preprocess", "-d", "777", "-plans_name", fitted.path.stem, "-c", "3d_fullres", "-np", "1")
    train_and_predict(tiny, fitted.trainer, fitted.path.stem, tmp_path / "out")
