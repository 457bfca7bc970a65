"""`nnunet-invariance weights ...`, plans copies, and fitting plans to a checkpoint."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    NotPreprocessedError,
    OptionError,
    OutputError,
    UnknownConfigurationError,
    WeightsIncompatibleError,
)
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.plans.copies import preprocessing_command, write_plans_copy
from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
from nnunet_invariance.weights.checkpoint import read_metadata
from nnunet_invariance.weights.inspection import inspect
from nnunet_invariance.weights.locate import pretraining_folder
from tests.helpers.planned_files import BASE, CONFIGURATION, NAME, write_planned
from tests.helpers.small_checkpoints import architecture, write

COPY = (NAME, BASE, "myPlans", CONFIGURATION)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of one channel with plans for the small network and one preprocessed case; its folder."""
    return write_planned(tmp_path, monkeypatch)


def test_copy_differs_only_where_it_was_asked_to(planned: Path) -> None:
    before = (planned / "nnUNetPlans.json").read_bytes()
    path = write_plans_copy(*COPY, block={"aux": False}, changes={"batch_size": 3})
    assert path == planned / "myPlans.json"
    assert (planned / "nnUNetPlans.json").read_bytes() == before

    expected = json.loads(before)
    expected["plans_name"] = "myPlans"
    expected["configurations"][CONFIGURATION]["batch_size"] = 3
    expected["configurations"][CONFIGURATION]["nnunet_invariance"] = {"seed": 5, "aux": False}
    assert json.loads(path.read_text()) == expected
    assert PlansManager(str(path)).plans_name == "myPlans"
    assert preprocessing_command(NAME, "myPlans", CONFIGURATION) is None


def test_same_copy_twice_is_fine_and_a_different_one_is_not(planned: Path) -> None:
    path = write_plans_copy(*COPY, changes={"batch_size": 3})
    stamp = path.stat().st_mtime_ns
    write_plans_copy(*COPY, changes={"batch_size": 3})
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match=r"myPlans\.json exists with other content"):
        write_plans_copy(*COPY, changes={"batch_size": 4})
    with pytest.raises(OutputError, match=r"nnUNetPlans\.json exists"):
        write_plans_copy(NAME, BASE, BASE, CONFIGURATION, block={"seed": 6})
    assert json.loads(path.read_text())["configurations"][CONFIGURATION]["batch_size"] == 3


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"spacing": [2.0, 1.0, 1.0]}, True),
        ({"normalization_schemes": ["CTNormalization"]}, True),
        ({"spacing": [1.0, 1.0, 1.0]}, False),
        ({"patch_size": [16, 16, 16]}, False),
    ],
)
def test_other_preprocessing_gets_its_own_folder(
    planned: Path, changes: dict, own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nnunet_invariance")
    path = write_plans_copy(*COPY, changes=changes)
    identifier = json.loads(path.read_text())["configurations"][CONFIGURATION]["data_identifier"]
    assert identifier == ("myPlans_3d_fullres" if own else "nnUNetPlans_3d_fullres")
    command = "nnUNetv2_preprocess -d 778 -plans_name myPlans -c 3d_fullres"
    assert preprocessing_command(NAME, "myPlans", CONFIGURATION) == (command if own else None)
    assert (command in caplog.text) == own


@pytest.mark.parametrize("name", ["my__plans", "", "a/b", "plans.json"])
def test_bad_plans_names_are_refused(planned: Path, name: str) -> None:
    with pytest.raises(OptionError, match="cannot be used"):
        write_plans_copy(NAME, BASE, name, CONFIGURATION)
    assert len(list(planned.glob("*.json"))) == 2


def test_bad_options_plans_and_configurations_are_named_and_leave_nothing(planned: Path) -> None:
    with pytest.raises(OptionError, match="'min_coverage'"):
        write_plans_copy(*COPY, block={"min_coverage": 7})
    with pytest.raises(NotPreprocessedError, match=r"noPlans\.json does not exist"):
        write_plans_copy(NAME, "noPlans", "myPlans", CONFIGURATION)
    with pytest.raises(UnknownConfigurationError, match="4d"):
        write_plans_copy(NAME, BASE, "myPlans", "4d")
    assert not (planned / "myPlans.json").exists()


def test_fitting_keeps_the_plans_and_says_every_decision(planned: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.safetensors",
        architecture(channels=2),
        spacing=[0.5, 1.0, 1.0],
        patch_size=[48, 32, 32],
        teacher=False,
    )
    fitted = fit_plans_to_checkpoint("778", file)
    assert fitted.path == planned / "nnUNetPlans_alice.json"
    base = json.loads((planned / "nnUNetPlans.json").read_text())["configurations"][CONFIGURATION]
    copy = json.loads(fitted.path.read_text())["configurations"][CONFIGURATION]
    assert copy.pop("nnunet_invariance") == {"seed": 5, "checkpoint": str(file), "branch": "student"}
    base.pop("nnunet_invariance")
    assert copy == base
    text = "\n".join(fitted.decisions)
    for part in (
        "PlainConvUNet",
        "2 in the file, 1 in the data set",
        "file had [0.5, 1.0, 1.0]",
        "file had [48, 32, 32]",
    ):
        assert part in text
    assert "normalisation: ['ZScoreNormalization']" in text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            architecture("ResidualEncoderUNet"),
            "architecture: ResidualEncoderUNet in the file, PlainConvUNet in the plans",
        ),
        (architecture(features=(4, 12, 16)), "features_per_stage, stage 1: 12 in the file, 8 in the plans"),
        (architecture(dimensions=2), "dimensions: 2-D in the file, 3-D in the plans"),
    ],
)
def test_an_encoder_that_does_not_fit_is_named(planned: Path, tmp_path: Path, other: Architecture, said: str) -> None:
    file = write(tmp_path / "c.safetensors", other)
    with pytest.raises(WeightsIncompatibleError) as error:
        fit_plans_to_checkpoint(NAME, file)
    assert said in str(error.value)
    assert f"nnunet-invariance pretrain alice {NAME} 3d_fullres -p nnUNetPlans" in str(error.value)
    assert len(list(planned.glob("*.json"))) == 2


def test_one_number_for_all_stages_is_the_same_as_a_list(planned: Path, tmp_path: Path) -> None:
    other = architecture()
    other.arch_kwargs["n_conv_per_stage"] = 2
    file = write(tmp_path / "c.safetensors", other)
    with pytest.raises(WeightsIncompatibleError) as error:
        fit_plans_to_checkpoint(NAME, file)
    assert "n_conv_per_stage, stage 0: 2 in the file, 1 in the plans" in str(error.value)
    assert "stage 1" not in str(error.value)


# ---- command line ----


def test_list_shows_state_and_damage(planned: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["weights", "list"]) == 0
    assert capsys.readouterr().out.endswith("\nnext: nnunet-invariance pretrain METHOD DATASET CONFIGURATION\n")

    write(pretraining_folder("alice", NAME, BASE, CONFIGURATION) / "checkpoint_final.safetensors")
    write(
        pretraining_folder("alice", NAME, BASE, "3d_lowres") / "checkpoint_latest.safetensors", finished=False, step=4
    )
    damaged = pretraining_folder("alice", "Dataset779_Other", BASE, CONFIGURATION) / "checkpoint_final.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no")
    assert main(["weights", "list"]) == 0
    out = capsys.readouterr().out
    assert f"{NAME}  alice__nnUNetPlans__3d_fullres  finished, step 10000 of 10000" in out
    assert f"{NAME}  alice__nnUNetPlans__3d_lowres  not finished, step 4 of 10000" in out
    assert "Dataset779_Other  alice__nnUNetPlans__3d_fullres  damaged" in out
    assert str(damaged) in out
    assert out.splitlines()[-1].startswith("next: nnunet-invariance weights inspect FILE")


def test_inspect_says_what_the_file_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "c.safetensors", spacing=[0.5, 1.0, 1.25])
    assert main(["weights", "inspect", str(path)]) == 0
    *fields, last = capsys.readouterr().out.splitlines()
    assert last == f"next: nnunet-invariance weights plan DATASET {path}"
    lines = dict(line.split("  ", 1) for line in fields)
    lines = {key: value.strip() for key, value in lines.items()}
    assert lines["method"] == "alice"
    assert lines["architecture"] == "PlainConvUNet"
    assert lines["spacing mm"] == "0.5, 1.0, 1.25"
    assert lines["sha256"] == f"{read_metadata(path)['sha256']} (verified)"
    network = sum(p.numel() for p in architecture().build().parameters())
    assert inspect(path).values == {"network": network, "teacher": network, "heads": 3}


def test_inspect_of_a_damaged_file_exits_with_2_and_one_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "c.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["weights", "inspect", str(path)]) == 2
    captured = capsys.readouterr()
    assert f"{path} cannot be used" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_export_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = write(tmp_path / "c.safetensors", pretrained=["encoder"]), tmp_path / "out.pth"
    command = ["weights", "export", str(path), str(out), "--format", "nnunet"]
    assert main(command) == 2
    assert "--random-decoder" in capsys.readouterr().err
    assert main([*command, "--random-decoder", "--branch", "student"]) == 0
    printed = capsys.readouterr().out
    assert "decoder: random" in printed
    assert f"-pretrained_weights {out}" in printed
    assert torch.load(out, weights_only=True)["nnunet_invariance"]["branch"] == "student"


def test_plan_prints_decisions_and_the_training_command(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "c.safetensors")
    assert main(["weights", "plan", "778", str(path), "--name", "fitted"]) == 0
    out = capsys.readouterr().out
    assert str(planned / "fitted.json") in out
    assert "nnUNetv2_train 778 3d_fullres 0 -p fitted" in out
    assert "nnUNetv2_preprocess" not in out
    shutil.rmtree(planned / "nnUNetPlans_3d_fullres")
    assert main(["weights", "plan", "778", str(path), "--name", "fitted"]) == 0
    assert (
        "next: nnUNetv2_preprocess -d 778 -plans_name fitted -c 3d_fullres, then nnUNetv2_train "
        in capsys.readouterr().out
    )


def test_plan_fits_what_nnunet_itself_planned(tiny, tmp_path: Path) -> None:
    """Stock plans through and through: network, channels and spacing as nnU-Net wrote them."""
    configuration = tiny.plans["configurations"][tiny.configuration]
    stock = Architecture.from_plans(configuration["architecture"], 1, 1)
    file = write(tmp_path / "c.safetensors", stock, **{k: configuration[k] for k in ("spacing", "patch_size")})
    fitted = fit_plans_to_checkpoint(tiny.name, file, new_plans_name="fittedToStock")
    try:
        block = json.loads(fitted.path.read_text())["configurations"][tiny.configuration]["nnunet_invariance"]
        assert block == {"checkpoint": str(file), "branch": "teacher"}
        assert preprocessing_command(tiny.name, "fittedToStock", tiny.configuration) is None
    finally:
        fitted.path.unlink()


def test_module_does_not_import_torch() -> None:
    code = "import sys, nnunet_invariance.cli.weights; sys.exit('torch' in sys.modules or 'nnunetv2' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_list_shows_the_shipped_files_without_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert main(["weights", "list"]) == 0
    out = capsys.readouterr().out
    assert "shipped  anatomix_plain4  finished, step 450 of 2000" in out
    assert "anatomix_plain4.md\n" in out
    assert "nnUNet_results is not set" in out


def test_the_command_that_uploads_a_card_exists(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "c.safetensors")
    assert main(["weights", "export", str(path), str(tmp_path / "card"), "--format", "card"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].rpartition("then: ")[2]
    assert command == f"hf upload OWNER/NAME {tmp_path / 'card'}"
    assert entry_points(group="console_scripts", name="hf")  # of huggingface_hub; other names have gone


HOSTILE = "\x1b[31mred\x07 <script>alert(1)</script> | [x](y)"


def test_text_of_a_file_reaches_neither_the_terminal_nor_a_page_as_code(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "c.safetensors", citation=HOSTILE, dataset_name=HOSTILE)
    assert main(["weights", "inspect", str(path)]) == 0
    assert main(["weights", "export", str(path), str(tmp_path / "card"), "--format", "card"]) == 0
    torch.save({HOSTILE: torch.zeros(1)}, tmp_path / "unknown.pth")
    assert main(["weights", "inspect", str(tmp_path / "unknown.pth")]) == 2
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "red" in text
        assert not any(ord(c) < 32 and c != "\n" for c in text)
    page = (tmp_path / "card" / "README.md").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert not any(ord(c) < 32 and c != "\n" for c in page)
    lines = [line for line in page.splitlines() if "red" in line]
    assert len(lines) == 2  # the data set and the citation, each in its own row
    assert all(line.count(" | ") == 1 for line in lines)
