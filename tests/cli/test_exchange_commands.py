"""TransferTrainer in stock nnU-Net commands, on the networks that other tools' files bring along."""

import json

import pytest
import torch
from dynamic_network_architectures.architectures.primus import PrimusS

from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign
from tests.helpers.commands import check_predictions, stock
from tests.helpers.foreign_checkpoints import nnssl_file
from tests.helpers.small_checkpoints import architecture
from tests.helpers.swin_files import VOCO, save
from tests.helpers.tiny_dataset import cut_down

pytestmark = [pytest.mark.commands, pytest.mark.slow]
TRAINER = "TransferTrainer_1epoch"
PATCHES = {"voco": [64, 32, 32], "primus": [32, 32, 32]}


def write_voco(path):
    return save(VOCO["backbone"](), path)


def write_primus(path):
    network = PrimusS(1, 1, (8, 8, 8), (16, 16, 16))
    plan = {"arch_class_name": "PrimusS", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    keys = {"key_to_encoder": "eva", "key_to_stem": "down_projection", "keys_to_in_proj": ["down_projection.proj"]}
    changes = {"architecture_plans": plan, "pretrain_patch_size": [16, 16, 16], "key_to_lpe": "eva.pos_embed", **keys}
    return nnssl_file(path, architecture(), network, **changes)


@pytest.mark.parametrize("source", ["voco", "primus"])
def test_train_and_predict(tiny, tmp_path, source):
    short = cut_down(tiny.plans, "ExchangePlans", iterations_per_epoch=1, val_iterations_per_epoch=1)
    (tiny.preprocessed / tiny.name / "ExchangePlans.json").write_text(json.dumps(short))
    file = import_foreign({"voco": write_voco, "primus": write_primus}[source](tmp_path / "a.pth"))
    fitted = fit_plans_to_checkpoint("777", file, "ExchangePlans", new_plans_name=source, keep="checkpoint")
    plans = json.loads(fitted.path.read_text())
    entry = plans["configurations"]["3d_fullres"]
    entry.update(patch_size=PATCHES[source], data_identifier="nnUNetPlans_3d_fullres")  # small, and made already
    fitted.path.write_text(json.dumps(plans))

    words = ("-p", source, "-tr", TRAINER, "-device", "cpu")
    stock("nnUNetv2_train", "777", "3d_fullres", "0", *words)
    fold = tiny.results / tiny.name / f"{TRAINER}__{source}__3d_fullres" / "fold_0"
    report = json.loads((fold / "transfer_report.json").read_text())
    assert report["coverage"] == 1
    assert bool(report["adapted"]) == (source == "primus")
    torch.load(fold / "checkpoint_final.pth", weights_only=True)
    where = ("-d", "777", "-c", "3d_fullres", "-f", "0", "--disable_tta")
    images, out = tiny.raw / tiny.name / "imagesTs", tmp_path / "predicted"
    stock("nnUNetv2_predict", "-i", images, "-o", out, *where, *words)
    check_predictions(out)
