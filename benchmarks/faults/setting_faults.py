"""Faults of the environment: variables, devices, packages, options, and folders that are in use."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from benchmarks.faults.fault import command, fault
from benchmarks.faults.subjects import CONFIGURATION, PLANS
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.doctor import worker_settings
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.scoring import surfaces
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.pretraining.engine.folder import hold_folder
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, find_weights
from tests.helpers.tiny_dataset import NAME

MAE = ("pretrain", "mae", NAME, CONFIGURATION, "-p", PLANS, "-device", "cpu")
FEW = ("evaluate", "few-shot", NAME, CONFIGURATION, "--trainers", "MAETrainer_1epoch", "-p", PLANS, "-device", "cpu")
CASES = ("--shots", "1", "--n-val", "1", "--test", "case_000")


@fault("environment", "two variables of nnU-Net are not set", "nnUNet_raw, nnUNet_results are not set")
def _variables(folder: Path) -> str:
    for name in ("raw", "results"):
        del os.environ[f"nnUNet_{name}"]
    return command(*MAE)


@fault("environment", "nnUNet_def_n_proc is no number", "nnUNet_def_n_proc is 'many'", "Correct them or unset them")
def _number(folder: Path) -> str:
    os.environ["nnUNet_def_n_proc"] = "many"
    return command(*MAE)


@fault("environment", "nnUNet_n_proc_DA is 0 (doctor)", "0", "unset nnUNet_n_proc_DA before nnUNetv2_plan")
def _zero(folder: Path) -> str:
    os.environ["nnUNet_n_proc_DA"] = "0"
    finding = next(found for found in worker_settings() if found.name == "nnUNet_n_proc_DA")
    return f"{finding.value} -> {finding.remedy}"


@fault("environment", "there is no such data set", "Dataset '999' was not found", "Check the id")
def _unknown(folder: Path) -> str:
    return command("pretrain", "mae", "999", CONFIGURATION, "-device", "cpu")


@fault("environment", "the plans have no such configuration", "has no configuration '3d_middleres'")
def _configuration(folder: Path) -> str:
    return command("pretrain", "mae", NAME, "3d_middleres", "-p", PLANS, "-device", "cpu")


@fault("environment", "there is no GPU", "-device cuda: not available", "Add -device cpu")
def _device(folder: Path) -> str:
    return command(*MAE[:-1], "cuda")


@fault("environment", "there is no GPU for evaluate", "-device cuda: not available", "Add -device cpu")
def _device_of_evaluate(folder: Path) -> str:
    return command(*FEW[:-1], "cuda", *CASES)


def _wrong_plans(folder: Path) -> None:
    planned = open_planned_dataset(NAME, CONFIGURATION, PLANS)
    plans = json.loads((planned.base / f"{PLANS}.json").read_text())
    plans["configurations"][CONFIGURATION]["nnunet_invariance"]["aux_wieght"] = 1.0
    (planned.base / "wrong.json").write_text(json.dumps({**plans, "plans_name": "wrong"}))


@fault("environment", "an option of a trainer in the plans is misspelt (pretrain)", "'aux_wieght'", "'aux_weight'")
def _block(folder: Path) -> str:
    _wrong_plans(folder)
    return command(*(word if word != PLANS else "wrong" for word in MAE))


@fault("environment", "an option of a trainer in the plans is misspelt (evaluate)", "'aux_wieght'", "'aux_weight'")
def _block_of_evaluate(folder: Path) -> str:
    _wrong_plans(folder)
    return command(*(word if word != PLANS else "wrong" for word in FEW), *CASES)


@fault("environment", "a --pretrain option is misspelt", "mask_ration", "Did you mean 'mask_ratio'")
def _pretrain(folder: Path) -> str:
    return command(*FEW, *CASES, "--pretrain", "mask_ration=0.5")


@fault("environment", "a --set option is out of range", "lr", "expected a number")
def _range(folder: Path) -> str:
    return command(*MAE, "--set", "lr=nan")


@fault("environment", "the seed is negative", "'seed' is -1", "expected a whole number from 0")
def _seed(folder: Path) -> str:
    return command(*MAE, "--seed", "-1")


@fault("environment", "MONAI is missing for --tolerance", "monai, which is not installed", "pip install")
def _monai(folder: Path) -> str:
    surfaces.find_spec = lambda _: None  # type: ignore[attr-defined]
    sys.modules["monai"] = None  # type: ignore[assignment]
    return command(*FEW, *CASES, "--tolerance", "1")


@fault("environment", "submitit is missing for --submit", "needs submitit", "pip install")
def _submitit(folder: Path) -> str:
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "submitit" else real(name, *rest)
    return command(*FEW, *CASES, "--submit", "slurm", "--slurm", "timeout_min=60")


@fault("environment", "the weights of a trainer are missing", "No weights found for mae", "Pre-train with")
def _weights(folder: Path) -> str:
    os.environ.pop(ENVIRONMENT_VARIABLE, None)
    os.environ["nnUNet_results"] = str(folder)
    find_weights("mae", NAME, PLANS, CONFIGURATION)
    return ""


@fault("environment", "a named checkpoint does not exist", ENVIRONMENT_VARIABLE, "no such file", "Correct or remove it")
def _named(folder: Path) -> str:
    os.environ[ENVIRONMENT_VARIABLE] = "nowhere.safetensors"
    find_weights("mae", NAME, PLANS, CONFIGURATION)
    return ""


@fault("environment", "another run uses the folder", "is in use by process", "Wait for it or stop it")
def _in_use(folder: Path) -> str:
    with lock_folder(folder):
        child = os.fork()
        if not child:
            try:
                with hold_folder(folder):
                    os._exit(1)
            except InvarianceError as error:
                (folder / "message").write_text(str(error))
                os._exit(0)
        os.waitpid(child, 0)
    return (folder / "message").read_text()


@fault("environment", "the embedding of alignment=sam is missing", "does not exist", "pretrain sam")
def _embedding(folder: Path) -> str:
    os.environ["nnUNet_results"] = str(folder)
    return command("pretrain", "alice", *MAE[2:], "--set", "alignment=sam")


@fault("environment", "nothing to continue", "there is nothing to continue", "Start without --c")
def _nothing(folder: Path) -> str:
    os.environ["nnUNet_results"] = str(folder)
    return command(*MAE, "--c")
