"""The few-shot command: its arms, the weights they start from, its test cases, and what it refuses."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import ComparisonError, OptionError
from nnunet_invariance.evaluation.protocols.arms import choose_arms, twin_of, why_not
from nnunet_invariance.evaluation.protocols.cases import seen_cases
from nnunet_invariance.evaluation.protocols.checkpoints import (
    describe_checkpoint,
    find_checkpoints,
    require_all,
    require_unseen,
)
from nnunet_invariance.evaluation.protocols.few_shot import _test_cases
from nnunet_invariance.evaluation.protocols.pretrainings import WeightRules, pretrain, provide_checkpoints
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.report.results import SUMMARY
from nnunet_invariance.evaluation.runner.comparison import prepare
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, LATEST
from tests.helpers import small_checkpoints
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import write_weights


def plan(tiny, name: str, **options):
    """The tiny data set under plans of their own name, with options."""
    path = tiny.preprocessed / tiny.name / f"{name}.json"
    path.write_text(json.dumps(cut_down(tiny.plans, name, **options)))
    return open_planned_dataset(tiny.name, tiny.configuration, name)


@pytest.fixture
def short(tiny):
    return plan(tiny, "ShortPlans", iterations_per_epoch=1, val_iterations_per_epoch=1, seed=0)


@pytest.fixture
def stock(tiny):
    return plan(tiny, "StockPlans")


# --- arms


def test_every_trainer_has_its_twin_and_meets_every_baseline(stock):
    chosen = choose_arms(["AliceTrainer"], ["nnUNetTrainer", "MAETrainer"], stock)
    assert [arm.name for arm in chosen.arms] == ["AliceTrainer", "AliceTrainer_scratch", "nnUNetTrainer", "MAETrainer"]
    assert chosen.contrasts == (
        Contrast("AliceTrainer", "AliceTrainer_scratch", "own twin"),
        Contrast("AliceTrainer", "nnUNetTrainer", "nnUNetTrainer"),
        Contrast("AliceTrainer", "MAETrainer", "MAETrainer"),
    )


def test_the_stock_trainer_becomes_the_baseline_where_iterations_differ_from_stock(stock, short):
    def names(*arguments):
        return [arm.name for arm in choose_arms(*arguments).arms][-1]

    assert names(["AliceTrainer"], ["nnUNetTrainer"], stock) == "nnUNetTrainer"
    assert names(["AliceTrainer"], ["nnUNetTrainer"], short) == "BaselineTrainer"
    assert names(["AliceTrainer_5epochs"], ["nnUNetTrainer"], stock) == "BaselineTrainer_5epochs"
    assert names(["AliceTrainer_5epochs"], ["MAETrainer"], stock) == "MAETrainer_5epochs"


def test_no_trainer_of_a_selection_is_longer_than_another(stock, short):
    def names(trainers, baselines, planned=stock):
        return [arm.name for arm in choose_arms(trainers, baselines, planned).arms]

    assert names(["MAETrainer_5epochs", "ICMSegTrainer"], []) == [
        *("MAETrainer_5epochs", "MAETrainer_scratch_5epochs", "ICMSegTrainer_5epochs")
    ]
    assert names(["ICMSegTrainer"], ["MAETrainer_5epochs"]) == ["ICMSegTrainer_5epochs", "MAETrainer_5epochs"]
    assert names(["ICMSegTrainer", "nnUNetTrainer"], [], short) == ["ICMSegTrainer", "BaselineTrainer"]
    assert names(["nnUNetTrainer"], ["nnUNetTrainer_5epochs"]) == ["BaselineTrainer_5epochs"]
    assert names(["nnUNetTrainer"], []) == ["nnUNetTrainer"]


def test_twins():
    assert twin_of("AliceTrainer_5epochs") == "AliceTrainer_scratch_5epochs"
    assert twin_of("AliceTrainer_scratch") is None
    assert twin_of("BaselineTrainer") is None


def test_lengths_must_be_equal_and_names_known(stock):
    with pytest.raises(ComparisonError, match=r"lengths differ \(_2epochs, _5epochs\): all arms need equal"):
        choose_arms(["AliceTrainer_5epochs", "MAETrainer_2epochs"], [], stock)
    with pytest.raises(ComparisonError, match=r"no trainer 'AlcieTrainer'; similar names: AliceTrainer"):
        choose_arms(["AlcieTrainer"], [], stock)


def test_a_trainer_that_does_not_apply_is_left_out_with_the_reason(tiny, stock, monkeypatch):
    from nnunet_invariance.trainers.icmseg import ICMSegTrainer

    monkeypatch.setattr(ICMSegTrainer, "least_channels", 2, raising=False)
    reason = f"needs at least 2 channels, {tiny.name} has 1"
    assert why_not("ICMSegTrainer", stock) == reason
    chosen = choose_arms(["AliceTrainer", "ICMSegTrainer"], [], stock)
    assert [arm.name for arm in chosen.arms] == ["AliceTrainer", "AliceTrainer_scratch"]
    assert chosen.left_out == {"ICMSegTrainer": reason}
    with pytest.raises(ComparisonError, match=r"No trainer applies to .*: ICMSegTrainer: needs at least 2"):
        choose_arms(["ICMSegTrainer"], [], stock)
    flat = replace(stock, configuration_name="2d", configuration=stock.plans.get_configuration("2d"))
    assert why_not("AliceTrainer", flat) == "needs a 3-D configuration, 2d is 2-D"


# --- weights


def write_manifest(folder: Path, *names: str) -> None:
    """A manifest with the checksum that the weights of the tests name."""
    text = json.dumps({"sha256": "0" * 64, "cases": [{"name": name} for name in names]})
    (folder / "manifest.json").write_text(text)


@pytest.fixture
def alice(tiny, short) -> tuple:
    """A finished Alice pre-training of two cases, and the place it lies in."""
    place = tiny.results / tiny.name / "pretraining"
    folder = place / "alice__ShortPlans__3d_fullres"
    write_weights(tiny, folder / "checkpoint_final.safetensors")
    write_manifest(folder, "case_004", "case_005")
    (folder / "metrics.csv").write_text("epoch,seconds\n1,2.5\n2,3.0\n")
    yield place, folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


ARMS = [Arm(name, name) for name in ("AliceTrainer_1epoch", "AliceTrainer_scratch_1epoch", "ICMSegTrainer_1epoch")]


def test_weights_are_found_in_the_first_place_that_has_them(short, alice, tmp_path, monkeypatch):
    monkeypatch.delenv("NNUNET_INVARIANCE_CHECKPOINT", raising=False)
    place, folder = alice
    found = find_checkpoints(ARMS, short, [tmp_path, place])
    assert found == {"AliceTrainer_1epoch": folder / "checkpoint_final.safetensors"}
    require_all(ARMS, found, short)
    described = describe_checkpoint(found["AliceTrainer_1epoch"])
    assert described["seconds"] == 5.5
    assert len(described["sha256"]) == 64


def test_a_named_checkpoint_is_for_every_trainer_but_the_twins(short, alice, monkeypatch):
    named = alice[1] / "checkpoint_final.safetensors"
    monkeypatch.setenv("NNUNET_INVARIANCE_CHECKPOINT", str(named))
    assert set(find_checkpoints(ARMS, short, [])) == {"AliceTrainer_1epoch", "ICMSegTrainer_1epoch"}
    monkeypatch.setenv("NNUNET_INVARIANCE_CHECKPOINT", "gone.safetensors")
    with pytest.raises(ComparisonError, match=r"AliceTrainer_1epoch: .*gone\.safetensors does not exist"):
        require_all(ARMS, find_checkpoints(ARMS, short, []), short)


def test_missing_weights_are_all_listed(tiny, short, monkeypatch):
    monkeypatch.delenv("NNUNET_INVARIANCE_CHECKPOINT", raising=False)
    arms = [*ARMS, *(Arm(name, name) for name in ("MAETrainer_1epoch", "TransferTrainer_1epoch"))]
    with pytest.raises(ComparisonError) as error:
        require_all(arms, {}, short)
    words = f"{tiny.name} 3d_fullres -p ShortPlans"
    assert str(error.value).splitlines()[1:4] == [
        f"  AliceTrainer_1epoch: nnunet-invariance pretrain alice {words}",
        f"  MAETrainer_1epoch: nnunet-invariance pretrain mae {words}",
        "  TransferTrainer_1epoch: name a checkpoint in NNUNET_INVARIANCE_CHECKPOINT or the plans",
    ]
    assert "--pretrain" in str(error.value)


def few_shot_words(tiny, out: Path, *more: str) -> list[str]:
    words = ["evaluate", "few-shot", "777", "3d_fullres", "-p", "ShortPlans", "--trainers", "AliceTrainer_1epoch"]
    return [*words, "--shots", "1", "--n-val", "1", "-device", "cpu", "--disable_tta", "--out", str(out), *more]


def test_the_command_names_missing_weights_and_leaves_nothing(tiny, short, tmp_path, capsys):
    assert main(few_shot_words(tiny, tmp_path / "out", "--test", "case_000", "--baselines", "MAETrainer")) == 2
    said = capsys.readouterr().err
    assert "pretrain alice" in said
    assert "pretrain mae" in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_made_is_said_before_any_pretraining(tiny, short, tmp_path, capsys):
    more = ("--test", "case_000", "--baselines", "TransferTrainer", "--pretrain")
    assert main(few_shot_words(tiny, tmp_path / "out", *more)) == 2
    assert "TransferTrainer_1epoch: name a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_test_case_that_a_pretraining_has_seen_is_refused(tiny, short, alice, tmp_path, capsys):
    assert main(few_shot_words(tiny, tmp_path / "out", "--test", "case_004")) == 2
    said = capsys.readouterr().err
    assert "1 test case is in the pre-training alice__ShortPlans__3d_fullres: case_004." in said
    assert "--transductive" in said
    assert not (tmp_path / "out").exists()
    path = alice[1] / "checkpoint_final.safetensors"
    require_unseen({"a": path}, ["case_000"])


def test_a_manifest_of_other_weights_says_nothing_of_what_was_seen(short, alice):
    place, folder = alice
    (folder / "manifest.json").write_text(json.dumps({"sha256": "1" * 64, "cases": []}))
    with pytest.raises(ComparisonError, match=r"manifest\.json lists other cases than those of checkpoint_final"):
        seen_cases(find_checkpoints(ARMS, short, [place]).values())


@pytest.fixture
def made(tiny, short, monkeypatch) -> list[list[str]]:
    """Commands of pre-trainings, which leave weights and a manifest at once; comparisons are prepared and not run."""
    commands = []

    def run_command(job, command, log, folder, environment, keep_open=()):
        commands.append(command)
        trees = (Path(environment[f"nnUNet_{name}"]) / tiny.name for name in ("preprocessed", "results"))
        cases, place = next(trees) / short.folder.name, next(trees) / "pretraining" / "alice__ShortPlans__3d_fullres"
        write_weights(tiny, place / "checkpoint_final.safetensors")
        write_manifest(place, *(file.stem for file in sorted(cases.glob("*.pkl"))))
        return 1.0

    def only_prepare(comparison, out, **_):
        prepare(comparison, out)
        return out

    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr("nnunet_invariance.evaluation.protocols.pretrainings.run_command", run_command)
    monkeypatch.setattr("nnunet_invariance.evaluation.protocols.protocol.run_comparison", only_prepare)
    return commands


def test_a_pretraining_of_the_command_sees_no_test_case(tiny, short, tmp_path, monkeypatch):
    ran = []

    def run_command(job, command, log, folder, environment, keep_open=()):
        ran.append((command, environment))
        return 1.0

    monkeypatch.setattr("nnunet_invariance.evaluation.protocols.pretrainings.run_command", run_command)
    words = ["epochs=2", "alice:batch_size=1", "mae:batch_size=2"]
    path = pretrain("alice", short, ["case_000", "case_004"], tmp_path, "cpu", words)
    ((command, environment),) = ran
    assert command[1:] == [
        *("pretrain", "alice", tiny.name, "3d_fullres", "-p", "ShortPlans", "-device", "cpu"),
        *("--set", "epochs=2", "batch_size=1"),
    ]
    cases = Path(environment["nnUNet_preprocessed"]) / tiny.name / short.folder.name
    assert {p.name[:8] for p in cases.iterdir()} == {f"case_{i:03d}" for i in (1, 2, 3, 5)}
    assert path == Path(environment["nnUNet_results"]) / tiny.name / "pretraining" / path.parent.name / path.name
    kept = json.loads((tmp_path / "pretraining" / "alice.json").read_text())["pretrain"]
    assert kept["commands"] == [" ".join(command)]


def test_an_earlier_calls_cases_are_not_pre_trained_on(tiny, short, tmp_path, made):
    pretrain("alice", short, ["case_000"], tmp_path, "cpu")
    path = pretrain("alice", short, ["case_001"], tmp_path, "cpu")
    assert seen_cases([path]) == {f"case_{i:03d}" for i in (0, 2, 3, 4, 5)}
    path.rename(path.with_name(LATEST))
    pretrain("alice", short, ["case_001"], tmp_path, "cpu")
    pretrain("alice", short, ["case_002"], tmp_path, "cpu")  # it has begun with this one
    assert [command[-1] == "--c" for command in made] == [False, False, True, False]


def test_another_comparison_is_refused_before_anything_is_pre_trained(tiny, short, tmp_path, made, capsys):
    words = few_shot_words(tiny, tmp_path / "out", "--pretrain", "--test", "case_000")
    assert main(words) == 0
    assert main([*words[:-1], "case_001"]) == 2
    assert "belongs to another comparison: subsets, tests differ" in capsys.readouterr().err
    assert main([*words, "--seed", "1"]) == 2
    assert "belongs to another comparison: seed" in capsys.readouterr().err
    assert main(words) == 0
    assert len(made) == 1
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["commands"] == [shlex.join(["nnunet-invariance", *words])] * 2  # the refused ones are not recorded


def test_drawn_test_cases_that_a_pretraining_has_seen_are_kept_out_of_a_new_one(
    tiny, short, alice, tmp_path, made, capsys
):
    words = few_shot_words(tiny, tmp_path / "free", "--n-test", "2")
    assert main([*words, "--pretrain"]) == 0
    assert made == []  # four cases are free
    write_manifest(alice[1], *(f"case_{i:03d}" for i in range(6)))
    words = few_shot_words(tiny, tmp_path / "out", "--n-test", "2")
    assert main(words) == 2
    assert "0 of the 6 labelled cases are free" in capsys.readouterr().err
    assert main([*words, "--pretrain"]) == 0
    (test,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparison"]["tests"]
    manifest = next((tmp_path / "out" / "pretraining").rglob("manifest.json")).read_text()
    assert not any(case in manifest for case in test["cases"])


def test_a_pretraining_in_between_does_not_change_the_test_cases_of_a_comparison(
    tiny, short, results, tmp_path, made, capsys
):
    words = few_shot_words(tiny, tmp_path / "out", "--n-test", "2", "--pretrain")
    assert main(words) == 0
    (test,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparison"]["tests"]
    others = sorted({f"case_{i:03d}" for i in range(6)} - {*test["cases"]})
    folder = results / "pretraining" / "alice__ShortPlans__3d_fullres"
    write_weights(tiny, folder / "checkpoint_final.safetensors")
    write_manifest(folder, *test["cases"], *others[:2])  # the last two cases are free
    assert main(words) == 0, capsys.readouterr().err
    assert len(made) == 1
    assert main([*words, "--n-test", "1"]) == 2
    assert "belongs to another comparison: subsets, tests differ" in capsys.readouterr().err


def test_what_has_seen_a_test_case_is_refused_before_others_are_made(tiny, short, tmp_path, made):
    named = tmp_path / "named" / "weights.safetensors"
    write_weights(tiny, named)
    write_manifest(named.parent, "case_000")
    arms = [ARMS[0], Arm("named", "TransferTrainer_1epoch", {ENVIRONMENT_VARIABLE: str(named)})]
    rules = WeightRules(["case_000"], settings=[])
    with pytest.raises(ComparisonError, match=r"in the pre-training weights\.safetensors: case_000"):
        provide_checkpoints(short, arms, tmp_path / "out", "cpu", rules)
    assert made == []
    allowed = replace(rules, transductive=True)
    assert provide_checkpoints(short, arms, tmp_path / "out", "cpu", allowed)[1] == {"case_000"}
    assert len(made) == 1


def test_a_setting_for_an_unknown_pretraining_is_refused(tiny, short, tmp_path, made, capsys):
    assert main(few_shot_words(tiny, tmp_path / "out", "--test", "case_000", "--pretrain", "alcie:batch_size=1")) == 2
    assert (
        "--pretrain alcie:batch_size=1: there is no pre-training 'alcie'. Expected one of alice"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_weights_of_the_package_are_the_last_place(tiny, short, tmp_path, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr("nnunet_invariance.weights.locate.SHIPPED", tmp_path / "shipped")
    arm = Arm("AnatomixTrainer_1epoch", "AnatomixTrainer_1epoch")
    path = tmp_path / "shipped" / "anatomix_tiny.safetensors"
    small_checkpoints.write(path, method="anatomix")  # of another network
    assert find_checkpoints([arm], short, []) == {}
    write_weights(tiny, path, method="anatomix")
    found = find_checkpoints([arm], short, [])
    assert found == {arm.name: path}
    require_all([arm], found, short)
    own = tmp_path / "place" / "anatomix__ShortPlans__3d_fullres" / "checkpoint_final.safetensors"
    write_weights(tiny, own, method="anatomix")
    assert find_checkpoints([arm], short, [tmp_path / "place"]) == {arm.name: own}
    own.rename(own.with_name(LATEST))
    assert find_checkpoints([arm], short, [tmp_path / "place"]) == {}  # as for the trainer


def test_an_unfinished_pretraining_is_to_be_continued(tiny, short, alice):
    place, folder = alice
    (folder / "checkpoint_final.safetensors").rename(folder / LATEST)
    with pytest.raises(ComparisonError, match=r"pretrain alice Dataset777_Tiny 3d_fullres -p ShortPlans --c\n"):
        require_all(ARMS, find_checkpoints(ARMS, short, [place]), short)


# --- test cases


def write_test_folder(tiny, folder: Path) -> Path:
    raw = tiny.raw / tiny.name
    for kind, suffix in (("images", "_0000"), ("labels", "")):
        (folder / f"{kind}Ts").mkdir(parents=True)
        for case in ("case_000", "case_001"):
            shutil.copy(
                raw / f"{kind}Tr" / f"{case}{suffix}.nii.gz", folder / f"{kind}Ts" / f"new_{case}{suffix}.nii.gz"
            )
    return folder


def test_a_folder_of_test_cases(tiny, stock, tmp_path):
    folder = write_test_folder(tiny, tmp_path / "external")
    assert [case.name for case in _test_cases(stock, folder, 0, 0, [])] == ["new_case_000", "new_case_001"]
    described = folder / "dataset.json"
    described.write_text(json.dumps({"labels": {"background": 0, "core": 1, "body": 2}}))
    with pytest.raises(ComparisonError, match=r"dataset\.json has the labels .*'core': 1.* expected .*'body': 1"):
        _test_cases(stock, folder, 0, 0, [])
    described.write_text(json.dumps({"labels": stock.dataset_json["labels"]}))
    label = folder / "labelsTs" / "new_case_001.nii.gz"
    sitk.WriteImage(sitk.ReadImage(label) + 5, label)
    with pytest.raises(ComparisonError, match=r"new_case_001\.nii\.gz contains 3 unknown labels, 5, 6, 7; dataset"):
        _test_cases(stock, folder, 0, 0, [])
    label.unlink()
    with pytest.raises(ComparisonError, match=r"1 test case has no image with a label: new_case_001"):
        _test_cases(stock, folder, 0, 0, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": -1.0}, r"--tolerance is -1\.0; expected a distance in mm"),
        ({"tolerance": float("nan")}, r"--tolerance is nan"),
        ({"tolerance": float("inf")}, r"--tolerance is inf"),
        ({"slurm": {"slurm_partition": "gpu"}}, r"--slurm .*expected a time limit, timeout_min=MINUTES"),
        (
            {"slurm": {"timeout_min": 9}, "devices": ["0", "1"]},
            r"--devices is \['0', '1'\]; expected none together with --submit",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything(settings, message):
    with pytest.raises(OptionError, match=message):
        ProtocolOptions(**settings)


def test_parameters_of_slurm_need_slurm(tiny, short, tmp_path, capsys):
    assert main(few_shot_words(tiny, tmp_path / "out", "--test", "case_000", "--slurm", "timeout_min=9")) == 2
    assert "--slurm timeout_min=9 without --submit" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.commands
def test_the_command_from_pretraining_to_page_then_grown(tiny, short, tmp_path, monkeypatch):
    monkeypatch.delenv("NNUNET_INVARIANCE_CHECKPOINT", raising=False)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "nnUNet_npp": "0", "nnUNet_nps": "0"}

    def call(*more: str) -> subprocess.CompletedProcess:
        words = few_shot_words(tiny, tmp_path / "out", "--test", "case_000", "case_004", *more)
        command = [sys.executable, "-m", "nnunet_invariance", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    first = call("--pretrain", "epochs=1", "iterations=1", "workers=0")
    assert first.returncode == 0, first.stderr
    out = tmp_path / "out"
    assert "AliceTrainer_1epoch against AliceTrainer_scratch_1epoch, 1 shot" in (out / SUMMARY).read_text()
    assert "100% of the encoder" in (out / "report.html").read_text()
    manifest = next((out / "pretraining").rglob("manifest.json")).read_text()
    assert {case["name"] for case in json.loads(manifest)["cases"]} == {f"case_{i:03d}" for i in (1, 2, 3, 5)}
    assert "case_000" not in manifest

    trained = {p: p.stat().st_mtime_ns for p in out.rglob("checkpoint_final.*")}
    again = call("--baselines", "nnUNetTrainer")
    assert again.returncode == 0, again.stderr
    record = json.loads((out / "comparison.json").read_text())
    assert list(record["comparison"]["arms"])[-1] == "BaselineTrainer_1epoch"
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    assert "AliceTrainer_1epoch against BaselineTrainer_1epoch" in (out / SUMMARY).read_text()


@pytest.mark.slow
@pytest.mark.commands
def test_a_comparison_killed_while_pre_training_then_while_training_goes_on(tiny, short, tmp_path, monkeypatch):
    monkeypatch.delenv("NNUNET_INVARIANCE_CHECKPOINT", raising=False)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "nnUNet_npp": "0", "nnUNet_nps": "0"}
    out = tmp_path / "out"
    words = few_shot_words(tiny, out, "--test", "case_000", "--pretrain", "epochs=1", "iterations=1", "workers=0")
    command = [sys.executable, "-m", "nnunet_invariance", *words]

    def call(kill_at: str | None = None) -> tuple[int, str]:
        """Run the command, killed as soon as there is such a file, once the processes of a killed one have ended."""
        while True:
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            while kill_at and process.poll() is None and not any(out.glob(kill_at)):
                time.sleep(0.1)
            if kill_at and process.poll() is None:
                process.kill()  # SIGKILL to it alone: what it started lives on for a while, and keeps the folder
            said = process.communicate(timeout=900)[1]
            if "is in use" not in said:
                return process.returncode, said

    assert call(kill_at="pretraining/**/log.txt")[0] == -signal.SIGKILL
    assert call(kill_at="arms/*/shots1_draw0/train.log")[0] == -signal.SIGKILL
    status, said = call()
    assert status == 0, said
    assert "AliceTrainer_1epoch against AliceTrainer_scratch_1epoch" in (out / SUMMARY).read_text()
    assert not list(out.rglob("*.partial"))


def test_the_last_warnings_of_a_pretraining_are_described(tiny, tmp_path):
    write_weights(tiny, tmp_path / "checkpoint_final.safetensors")
    assert "warnings" not in describe_checkpoint(tmp_path / "checkpoint_final.safetensors")
    (tmp_path / "log.txt").write_text(
        "2026-01-01 10:00:00,000 ERROR epoch 1: collapse: rank 1\n"
        "2026-01-01 10:00:00,000 INFO epoch 1/2 loss 1.0\n"
        "2026-01-01 10:00:00,000 WARNING step 7 skipped: the loss is not finite\n"
        "2026-01-01 10:00:00,000 ERROR epoch 2: collapse: uniform (0.998 of log K)\n"
    )
    described = describe_checkpoint(tmp_path / "checkpoint_final.safetensors")
    assert described["warnings"] == ["collapse: uniform (0.998 of log K) (epoch 2)"]
