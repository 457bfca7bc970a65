"""Small runs of the commands whose state must survive a kill, and the content by which two ends are compared."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.evaluation import ProtocolOptions, few_shot
from nnunet_invariance.evaluation.runner import jobs
from nnunet_invariance.weights.checkpoint import load_checkpoint, tensors_sha256
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.locate import FINAL, LATEST, pretraining_folder
from tests.helpers import tiny_dataset, tiny_modalities
from tests.helpers.methods import alice, anatomix, mae, puir, sam
from tests.helpers.planning import plan_and_preprocess
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_trainers import make_trainer

PLANS, CONFIGURATION = "faultsPlans", "3d_fullres"
SHORT = ["epochs=3", "iterations=2", "workers=0"]
METHODS = {"alice": alice, "mae": mae, "anatomix": anatomix, "puir": puir, "sam": sam}
OPTIONS = {"iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "seed": 1}
TRAINERS = ("BaselineTrainer_1epoch", "BaselineTrainerDA5_1epoch")
TABLES = ("scores.csv", "means.csv", "effects.csv", "ranking.csv", "summary.txt")


@dataclass(frozen=True)
class Subject:
    """A command on small data.

    Attributes:
        run: runs or continues the command in ``nnUNet_results``.
        content: what must be equal at the end of a disturbed and of an undisturbed run.
    """

    name: str
    run: Callable[[], None]
    content: Callable[[], str]


def make_data(work: Path) -> None:
    """Write, plan and preprocess both data sets; patches of 16 voxels, and networks of 4 to 16 features."""
    use_tree(work)
    if (work / "ready").is_file():
        return
    shutil.rmtree(work / "nnunet", ignore_errors=True)
    for tree in ("raw", "preprocessed", "results"):
        (work / "nnunet" / tree).mkdir(parents=True)
    for module, identifier in ((tiny_dataset, 777), (tiny_modalities, 779)):
        module.write_raw_dataset(work / "nnunet" / "raw" / module.NAME)
        base = work / "nnunet" / "preprocessed" / module.NAME
        plan_and_preprocess(base, identifier)
        write_plans(base, json.loads((base / "nnUNetPlans.json").read_text()))
    (work / "ready").touch()


def write_plans(base: Path, plans: dict[str, Any]) -> None:
    """Write the plans of the small networks beside those of a data set."""
    (base / f"{PLANS}.json").write_text(json.dumps(_smaller(plans)))


def use_tree(work: Path) -> None:
    """Set nnU-Net's folders."""
    os.environ.update({f"nnUNet_{tree}": str(work / "nnunet" / tree) for tree in ("raw", "preprocessed", "results")})


def _smaller(plans: dict[str, Any]) -> dict[str, Any]:
    plans = tiny_dataset.cut_down(plans, PLANS, **OPTIONS)
    configuration = plans["configurations"][CONFIGURATION]
    configuration.update(patch_size=[16, 16, 16])
    configuration["architecture"]["arch_kwargs"].update(features_per_stage=[4, 8, 16])
    return plans


def subjects() -> list[Subject]:
    """All of them."""
    methods = [
        Subject(f"pretrain {name}", lambda name=name: _pretrain(name), lambda name=name: _weights(name))
        for name in METHODS
    ]
    return [*methods, Subject("nnUNetv2_train", _train, _trained), Subject("evaluate", _evaluate, _tables)]


def _dataset(method: str) -> str:
    return tiny_modalities.NAME if method == "puir" else tiny_dataset.NAME


def _folder(method: str) -> Path:
    return pretraining_folder(method, _dataset(method), PLANS, CONFIGURATION)


def _pretrain(method: str) -> None:
    resume = any((_folder(method) / name).is_file() for name in (LATEST, FINAL))
    settings = [*SHORT, *METHODS[method].SETTINGS]
    run_pretraining(method, _dataset(method), CONFIGURATION, PLANS, settings, resume=resume)


def _weights(method: str) -> str:
    return tensors_sha256(load_checkpoint(_folder(method) / FINAL).tensors)


def _trainer() -> Any:
    base = Path(os.environ["nnUNet_preprocessed"])
    tiny = type("Tiny", (), {"preprocessed": base, "name": tiny_dataset.NAME})
    plans = json.loads((base / tiny_dataset.NAME / f"{PLANS}.json").read_text())
    return make_trainer(tiny, "AliceTrainer_scratch_3epochs", plans)


def _train() -> None:
    """The training of ``nnUNetv2_train ... --c``, without the validation that follows it."""
    trainer = _trainer()
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()


def _trained() -> str:
    file = next(Path(os.environ["nnUNet_results"]).rglob("checkpoint_final.pth"))
    content = open_foreign(file)
    momentum = {
        f"{number}.{name}": tensor
        for number, entry in content["optimizer_state"]["state"].items()
        for name, tensor in entry.items()
        if isinstance(tensor, torch.Tensor)
    }
    losses = json.dumps({k: v for k, v in content["logging"].items() if "timestamps" not in k}, default=str)
    return sha256(
        f"{tensors_sha256(content['network_weights'])}{tensors_sha256(momentum)}{losses}".encode()
    ).hexdigest()


def _evaluate() -> None:
    """``evaluate few-shot`` with fast stand-ins for nnU-Net's two commands, which write the same files."""
    jobs.run_command = _stand_in
    options = ProtocolOptions(shots=(1, 2), draws=2, n_val=1, device="cpu", mirroring=False)
    trainers, baselines = TRAINERS[:1], TRAINERS[1:]
    few_shot(
        tiny_dataset.NAME,
        CONFIGURATION,
        trainers,
        baselines,
        plans=PLANS,
        options=options,
        test=["case_000", "case_004"],
    )


def _stand_in(job: str, command: list[str], log: Path, folder: Path, environment: dict[str, str], *_: Any) -> float:
    log.parent.mkdir(parents=True, exist_ok=True)
    if command[0] == "nnUNetv2_train":
        trainer, fold = command[command.index("-tr") + 1], command[3]
        model = Path(environment["nnUNet_results"]) / command[1] / f"{trainer}__{PLANS}__{CONFIGURATION}"
        atomic_write(model / f"fold_{fold}" / "checkpoint_final.pth", lambda file: file.write(job.encode()))
        return 1.0
    target = folder / command[command.index("-o") + 1]
    target.mkdir(parents=True)
    for label in sorted((folder / "test_labels").glob("*.nii.gz")):
        shift = int(sha256(f"{job}{label.name}".encode()).hexdigest(), 16) % 5
        array = np.roll(sitk.GetArrayFromImage(sitk.ReadImage(str(label))), shift, 1)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(target / label.name))
    return 1.0


def _tables() -> str:
    out = next(Path(os.environ["nnUNet_results"]).rglob("comparison.json")).parent
    return sha256(b"".join((out / name).read_bytes() for name in TABLES)).hexdigest()
