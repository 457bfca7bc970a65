"""doctor reports problems with a remedy, and reports nothing if the setup is correct."""

import importlib
import json
import os
import re
import shlex
import shutil
import sys
from collections import namedtuple
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from nnunet_invariance import _discovery, doctor
from nnunet_invariance.cli import main as cli
from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import EnvironmentNotSetError
from nnunet_invariance.nnunet.planned_dataset import require_environment
from nnunet_invariance.registry import trainers as known_trainers
from tests.helpers.tiny_dataset import cut_down


def by_name(findings) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_a_correct_setup_has_no_problem(tiny, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 0)
    findings = by_name(doctor.diagnose())
    assert findings["trainers"].value == "found by nnU-Net"
    assert findings["hook"].value == "on"
    assert findings["torch"].value == metadata.version("torch")
    assert findings["nnUNet_raw"].value.startswith(str(tiny.raw))
    assert {name: finding.remedy for name, finding in findings.items() if finding.remedy} == {}
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "\nNo problem found.\nnext: nnunet-invariance demo; " in printed
    assert _discovery.ext_trainer_folder() in printed


def test_a_problem_is_marked_and_the_exit_status_is_1(tiny, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "! nnUNet_results" in printed
    assert "-> export nnUNet_results=" in printed


def test_folders_that_are_unset_missing_or_full_are_reported(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "absent"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(int(1.2e9)))
    findings = by_name(doctor.folders())
    assert findings["nnUNet_raw"].remedy == "export nnUNet_raw=/path/to/raw"
    assert findings["nnUNet_preprocessed"].remedy == f"mkdir -p '{tmp_path / 'absent'}'"
    assert findings["nnUNet_results"].value == f"{tmp_path} (1 GB free)"
    assert findings["nnUNet_results"].remedy.startswith("free at least 5 GB there")


def test_an_unwritable_folder_is_reported(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # works for root as well, who may write everywhere
    findings = by_name(doctor.folders())
    assert findings["nnUNet_raw"].remedy is None  # nnU-Net only reads it
    assert "is not writable" in findings["nnUNet_results"].value
    assert findings["nnUNet_preprocessed"].remedy.startswith(f"chmod u+w '{tmp_path}'")


@pytest.mark.parametrize(
    ("line", "value", "remedy"),
    [
        ("torch!=2.*", f"{metadata.version('torch')}, but !=2.* is needed", "pip install 'torch!=2.*'"),
        ("numpy>=1000", f"{metadata.version('numpy')}, but >=1000 is needed", "pip install 'numpy>=1000'"),
        ("no-such-package>=1", "not installed", "pip install 'no-such-package>=1'"),
        ("numpy>=1", metadata.version("numpy"), None),
    ],
)
def test_a_requirement_is_compared_with_the_installed_version(line, value, remedy):
    finding = doctor.check_requirement("Installed", Requirement(line))
    assert finding.value == value
    assert finding.remedy is remedy is None or finding.remedy.startswith(remedy)


def test_torch_2_9_and_missing_setuptools_are_reported_with_the_reason(monkeypatch):
    versions = {"torch": "2.9.1"}

    def version(name: str) -> str:
        if name == "setuptools":
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    torch = doctor.check_requirement("Installed", Requirement("torch>=2.6,!=2.9.*"))
    assert torch.value.startswith("2.9.1, but ")
    assert "several times slower" in torch.remedy
    assert "distutils" in doctor.check_requirement("Installed", Requirement("setuptools")).remedy


def test_known_traps_are_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setenv("nnUNet_def_n_proc", "1000")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    findings = by_name(doctor.traps())
    assert "import fails" in findings["torchvision"].value
    assert findings["torchvision"].remedy.startswith("pip install --upgrade torch torchvision")
    assert findings["nnUNet_def_n_proc"].value.startswith("1000 on ")
    assert findings["nnUNet_def_n_proc"].remedy.startswith("export nnUNet_def_n_proc=")
    assert findings["nnUNet_n_proc_DA"].remedy.startswith("unset nnUNet_n_proc_DA before nnUNetv2_plan_and_preprocess")


@pytest.mark.parametrize("workers", ["0", "many", "1.5"])
def test_an_invalid_number_of_workers_is_reported(workers, monkeypatch):
    monkeypatch.setenv("nnUNet_def_n_proc", workers)
    assert by_name(doctor.traps())["nnUNet_def_n_proc"].remedy.startswith("export nnUNet_def_n_proc=")


def test_the_default_number_of_workers_is_too_large_for_two_cores(monkeypatch):
    monkeypatch.delenv("nnUNet_def_n_proc")
    monkeypatch.setattr(doctor, "_cores", lambda: 2)
    finding = by_name(doctor.traps())["nnUNet_def_n_proc"]
    assert finding.value == "8 (nnU-Net's default) on 2 cores"
    assert finding.remedy.startswith("export nnUNet_def_n_proc=2")


def test_without_the_hook_the_remedy_is_the_shim_folder(monkeypatch):
    objects = importlib.import_module("nnunetv2.utilities.find_objects")
    stock = objects.recursive_find_trainer_class_by_name.__wrapped__
    monkeypatch.setattr(objects, "recursive_find_trainer_class_by_name", stock)
    monkeypatch.setattr(objects, "recursive_find_python_class", objects.recursive_find_python_class.__wrapped__)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    findings = by_name(doctor.discovery())
    assert findings["hook"].value == "off"
    assert findings["trainers"].value.startswith("not found by nnU-Net")
    assert findings["trainers"].remedy.endswith(f"export nnUNet_extTrainer={_discovery.ext_trainer_folder()}")
    monkeypatch.setenv("nnUNet_extTrainer", _discovery.ext_trainer_folder())
    assert by_name(doctor.discovery())["trainers"].value == "found by nnU-Net"


def test_torch_that_does_not_import_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = doctor.devices()
    assert finding.value.startswith("import fails")
    assert finding.remedy.startswith("pip install")


def test_every_extra_is_listed_with_a_command_that_installs_it(monkeypatch):
    listed = by_name(doctor.optional())
    declared = set(metadata.metadata("nnunet_invariance").get_all("Provides-Extra")) - {"test"}
    assert set(listed) == declared
    assert all(finding.remedy is None for finding in listed.values())  # an optional package is not a problem

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    missing = by_name(doctor.optional())
    assert re.fullmatch(r"not installed \(optional\): pip install 'convexadam.*'", missing["registration"].value)


def test_the_command_for_an_extra_names_the_packages_or_the_checkout(monkeypatch):
    assert shlex.split(install_command("hub"))[:2] == ["pip", "install"]
    assert Requirement(shlex.split(install_command("hub"))[2]).name == "huggingface_hub"

    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert install_command("hub") == "pip install '.[hub]' in the checkout"


def test_all_missing_variables_are_named_at_once(monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    names = "nnUNet_raw, nnUNet_preprocessed, nnUNet_results"
    with pytest.raises(EnvironmentNotSetError, match=f"{names} are not set"):
        require_environment()


def test_plans_are_checked_as_before_a_run(tiny, monkeypatch, capsys):
    names = doctor.PlanNames(tiny.name, device="cpu")
    findings = by_name(doctor.planned(names))
    assert findings["preprocessed cases"].value == "6"
    assert findings["options and network"].value == "PlainConvUNet"
    assert re.fullmatch(r"about 0\.\d GB, cpu has \d+\.\d GB free", findings["memory"].value)
    assert {finding.remedy for finding in findings.values()} == {None}
    monkeypatch.setattr("nnunet_invariance.plans.preflight.available_memory", lambda device: 1e6)
    assert "-gpu_memory_target" in by_name(doctor.planned(names))["memory"].remedy
    assert cli.main(["doctor", tiny.name, "3d_middleres", "-device", "cpu"]) == 1
    assert "has no configuration '3d_middleres'" in capsys.readouterr().out


def test_a_wrong_option_in_the_plans_is_reported(tiny):
    file = tiny.preprocessed / tiny.name / "wrongOption.json"
    file.write_text(json.dumps(cut_down(tiny.plans, "wrongOption", aux_wieght=1.0)))
    try:
        finding = by_name(doctor.planned(doctor.PlanNames(tiny.name, plans="wrongOption")))["options and network"]
    finally:
        file.unlink()
    assert finding.value == "Unknown option 'aux_wieght' in the plans block 'nnunet_invariance'."
    assert finding.remedy == "Did you mean 'aux_weight'?"


def test_the_needs_of_every_trainer_are_listed():
    listed = by_name(doctor.trainers())
    assert set(listed) == set(known_trainers())
    assert listed["PUIRTrainer"].value == (
        "3-D, at least 2 channels; needs nnunet-invariance pretrain puir DATASET CONFIGURATION"
    )
    assert listed["BaselineTrainer"].value == "2-D, 3-D; needs no pre-training"
    assert {finding.remedy for finding in listed.values()} == {None}


def test_plans_show_which_trainers_can_start(tiny, monkeypatch, tmp_path):
    names = doctor.PlanNames(tiny.name, device="cpu")
    listed = by_name(doctor.planned(names))
    assert set(known_trainers()) <= set(listed)
    assert listed["BaselineTrainer"].value == "ready"
    assert listed["PUIRTrainer"].value.startswith("not for these plans: it needs at least 2 channels")
    assert listed["MAETrainer"].value == f"needs nnunet-invariance pretrain mae {tiny.name} 3d_fullres -p nnUNetPlans"
    assert listed["AnatomixTrainer"].value.startswith(
        "needs nnunet-invariance pretrain anatomix"
    )  # no shipped file fits
    monkeypatch.setenv("NNUNET_INVARIANCE_CHECKPOINT", str(tmp_path / "named"))
    (tmp_path / "named").touch()
    assert by_name(doctor.planned(names))["MAETrainer"].value.startswith(f"ready, with {tmp_path / 'named'}")


def test_gpus_are_listed_with_their_memory(monkeypatch):
    gpu = namedtuple("Properties", "name total_memory")("A100", 42_500_000_000)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    assert by_name(doctor.devices())["cuda"].value == "A100, 42 GB; A100, 42 GB"


def test_one_core_is_not_plural(monkeypatch):
    monkeypatch.setattr(doctor, "_cores", lambda: 1)
    assert by_name(doctor.devices())["cpu"].value == "1 core"
