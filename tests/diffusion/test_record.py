"""``style ... --c`` continues a training with the settings of its record, and names a flag that contradicts them."""

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nnunet_invariance.cli.main import main
from nnunet_invariance.diffusion import controlnet, dreambooth
from nnunet_invariance.diffusion.options import TrainingOptions
from nnunet_invariance.diffusion.record import continued_settings, fixed, new_record, running_record, start_record
from nnunet_invariance.errors import DamagedFileError, OptionError, StyleFolderError

OPTIONS = TrainingOptions(steps=9, learning_rate=1e-3, amp="bf16")


@pytest.fixture
def target(tmp_path) -> Path:
    """The folder of a U-Net whose training was started and has saved no state yet."""
    record = new_record(Path("models/sd"), "axial abdomen", 32, "Dataset001_A", OPTIONS, "cpu", "first command")
    start_record(tmp_path / "unet", {**record, "conditions": ["body", "edges"]}, resume=False)
    return tmp_path / "unet"


def test_what_is_not_given_comes_from_the_record(target):
    settings = continued_settings(target, {})
    assert settings == {
        "base": Path("models/sd").absolute(),
        "prompt": "axial abdomen",
        "conditions": ["body", "edges"],
        "device": "cpu",
        **OPTIONS.to_dict(),
    }
    running_record(target).rename(running_record(target).with_name("kept.json"))
    target.mkdir()
    running_record(target).with_name("kept.json").rename(target / "training.json")
    assert continued_settings(target, {}) == settings  # of a training that is finished


def test_what_does_not_change_the_network_may_differ(target):
    given = {"base": Path("/moved/sd"), "conditions": ["edges", "body"], "device": "cuda", "save_every": 7, "steps": 9}
    assert continued_settings(target, given) == {**continued_settings(target, {}), **given}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"base": Path("/models/other")},
            r"--base is /models/other, but .*unet was started with .*models/sd\. Omit it",
        ),
        ({"prompt": "axial chest"}, "--prompt is axial chest, but .* was started with axial abdomen"),
        ({"learning_rate": 1e-4}, r"--learning-rate is 0\.0001, but .* was started with 0\.001\. .*anew without --c"),
        ({"conditions": []}, "--conditions is none, but .* was started with body edges"),
        ({"amp": "no"}, "--amp is no, but .* was started with bf16"),
    ],
)
def test_a_flag_that_contradicts_the_record_is_named_with_both_values(given, message, target):
    with pytest.raises(OptionError, match=message):
        continued_settings(target, given)


def test_a_continued_training_keeps_its_commands_and_compares_what_determines_the_network(target):
    record = json.loads(running_record(target).read_text())
    again = start_record(target, {**record, "device": "cuda", "commands": ["second command"]}, resume=True)
    assert again["commands"] == ["first command", "second command"]
    assert fixed(again) == fixed(record)
    assert fixed({**record, "prompt": "axial chest"}) != fixed(record)
    assert fixed({**record, "options": {**record["options"], "seed": 1}}) != fixed(record)


def test_no_record_and_a_damaged_one(target):
    with pytest.raises(StyleFolderError, match=r"nothing to continue, .*controlnet_training\.json does not exist"):
        continued_settings(target.with_name("controlnet"), {})
    path = running_record(target)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "options": {**record["options"], "steps": 0}}))
    with pytest.raises(DamagedFileError, match=r"unet_training\.json.*steps is 0.*move it and the state beside it"):
        continued_settings(target, {})


def test_the_command_line_repeats_no_flag(target, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(dreambooth, "train_dreambooth", lambda *args: calls.append(args) or target)
    monkeypatch.setattr(controlnet, "train_controlnet", lambda *args: calls.append(args) or target)
    root, base = str(target.parent), Path("models/sd").absolute()
    assert main(["style", "dreambooth", root, "--c"]) == 0
    assert calls.pop() == (
        *(target.parent, base, "axial abdomen", OPTIONS, "cpu", True),
        f"nnunet-invariance style dreambooth {root} --c",
    )
    assert main(["style", "dreambooth", root, "--c", "--steps", "10"]) == 2
    assert "--steps is 10, but the run in" in capsys.readouterr().err
    assert main(["style", "controlnet", root, "--c"]) == 2  # only the U-Net was started
    assert main(["style", "dreambooth", root]) == 2
    assert "style dreambooth needs --base and --prompt." in capsys.readouterr().err
    assert main(["style", "controlnet", root, "--base", "sd", "--seed", "3"]) == 0
    _, _, options, conditions, device, resume, _ = calls.pop()
    assert (options.learning_rate, options.grad_accum_steps, options.seed) == (1e-5, 8, 3)
    assert (conditions, device, resume) == ([], "cuda", False)
