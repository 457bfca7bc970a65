"""``--c`` continues a run with the settings of its ``run.json``, and refuses a setting that differs by name."""

import json
import re

import pytest

import nnunet_invariance.pretraining
from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import DamagedFileError, OptionError
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import load_method
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.record import RECORD, RunSettings, continued_settings, write_record
from nnunet_invariance.registry import METHODS, get_method
from nnunet_invariance.weights.checkpoint import read_metadata
from nnunet_invariance.weights.locate import FINAL, LATEST
from tests.helpers.methods import small


def write(folder, name="alice", network=None):
    """The record of a run of 100,000 steps in ``folder``; returns the class of its method."""
    kind = load_method(get_method(name))
    loop = LoopOptions(seed=3).resolve(kind.loop_defaults)
    settings = RunSettings(network, (folder / "scans",), "cpu", 2, True)
    write_record(folder, small(name).build(), loop, settings, "nnunet-invariance pretrain", resume=False)
    return kind


def scalars(folder, name):
    """The points of a curve, as TensorBoard reads them."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events.Scalars(name)


@pytest.mark.parametrize("name", [entry.name for entry in METHODS])
def test_the_settings_of_every_method_survive_the_file(name, tmp_path):
    kind = write(tmp_path, name)
    found = continued_settings(tmp_path, kind, RunSettings())
    assert kind.options_class(**found.options) == small(name).build().options
    assert LoopOptions(**found.loop) == LoopOptions(seed=3).resolve(kind.loop_defaults)
    assert (found.images, found.device, found.probe, found.tensorboard) == ((tmp_path / "scans",), "cpu", 2, True)


def test_settings_that_do_not_change_the_weights_may_be_given_again(tmp_path):
    kind = write(tmp_path)
    moved = tmp_path / "moved"
    loop = {"seed": 3, "lr": None, "timeout": 9.0, "workers": 0}
    given = RunSettings(None, (moved,), "cuda", 0, None, loop, {"ema_start": None, "mask_ratio": 0.75})
    found = continued_settings(tmp_path, kind, given)
    assert (found.images, found.device, found.probe) == ((moved,), "cuda", 0)
    assert (found.loop["timeout"], found.loop["workers"], found.loop["lr"]) == (9.0, 0, 1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (RunSettings(loop={"epochs": 6}), r"epochs is 6, but the run in .* was started with 400\. Omit it"),
        (RunSettings(options={"mask_ratio": 0.5}), r"mask_ratio is 0\.5, .* started with 0\.75"),
        (RunSettings(options={"preset": "release"}), r"\w+ is .*, but the run in .* was started with"),
        (RunSettings(options={"preset": "realese"}), "expected one of the presets"),
        (RunSettings(network="plain4"), "--network is plain4, .* started with None"),
    ],
)
def test_a_setting_that_differs_is_refused_with_both_values(given, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        continued_settings(tmp_path, write(tmp_path), given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe": "x"}, "probe is 'x', expected a whole number"),
        ({"loop": {"epochs": 0}}, "'epochs' is 0; expected a whole number of at least 1"),
        ({"options": {"mask": 1}}, "unexpected keyword argument 'mask'"),
        ({"method": None}, "method is None, expected a text"),
    ],
)
def test_a_damaged_record_is_named(change, message, tmp_path):
    kind = write(tmp_path)
    path = tmp_path / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedFileError, match=rf"run\.json.*{message}.*delete it and repeat --c with every flag"):
        continued_settings(tmp_path, kind, RunSettings())


def test_another_method_is_refused_and_a_missing_record_leaves_the_given_flags(tmp_path, caplog):
    kind = load_method(get_method("mae"))
    given = RunSettings(device="cpu")
    assert continued_settings(tmp_path, kind, given) == given
    assert "run.json is missing: this run needs every flag" in caplog.text
    write(tmp_path, "alice")
    with pytest.raises(OptionError, match=r"METHOD is mae, .* started with alice"):
        continued_settings(tmp_path, kind, given)


def test_a_run_without_a_dataset_needs_only_its_folder(tmp_path, monkeypatch):
    write(tmp_path, "anatomix", network="plain4")
    calls = []

    def pretrain(*where, **given):
        calls.append((*where, given["device"], given["loop"]["epochs"], given["resume"]))
        return tmp_path / FINAL

    monkeypatch.setattr(nnunet_invariance.pretraining, "pretrain_without_dataset", pretrain)
    for words in ([], ["--network", "plain4"]):
        assert main(["pretrain", "anatomix", *words, "--out", str(tmp_path), "--c"]) == 0
    assert calls == [("anatomix", "plain4", tmp_path, "cpu", 400, True)] * 2


def test_a_run_that_saved_nothing_starts_from_the_beginning(tmp_path, monkeypatch, caplog):
    write(tmp_path, "anatomix", network="anatomix")
    steps = []
    monkeypatch.setattr(Loop, "run", lambda loop: steps.append((loop.step, loop.options.seed)))
    assert main(["pretrain", "anatomix", "--out", str(tmp_path), "--c"]) == 0
    assert steps == [(0, 3)]
    assert "ended before it saved a state; it starts from the beginning" in caplog.text
    assert json.loads((tmp_path / RECORD).read_text())["commands"] == [
        "nnunet-invariance pretrain",
        f"nnunet-invariance pretrain anatomix --out {tmp_path} --c",
    ]


def test_a_run_is_continued_without_its_flags(tiny, results, monkeypatch, capsys):
    command = ["pretrain", "mae", tiny.name, "3d_fullres"]
    flags = ["--epochs", "2", "--iterations", "1", "--seed", "3", "-device", "cpu", "--tensorboard"]
    flags += ["--set", "workers=0", "batch_size=1", "mask_ratio=0.6"]
    folder = results / "pretraining" / "mae__nnUNetPlans__3d_fullres"
    save = Loop.save

    def save_and_end(loop, finished=False):
        save(loop, finished)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "save", save_and_end)
        assert main([*command, *flags]) == 130
    assert (folder / LATEST).is_file()
    before = (folder / RECORD).read_text()
    assert main([*command, "--c", "--iterations", "4"]) == 2
    assert re.search(r"--c: iterations is 4, but .* was started with 1", capsys.readouterr().err)
    assert (folder / RECORD).read_text() == before
    capsys.readouterr()
    assert main([*command, "--c"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [f"finished: {folder / FINAL}", f"next: nnUNetv2_train {tiny.name} 3d_fullres 0 -tr MAETrainer"]
    steps = [event.step for event in scalars(folder, "loss")]
    assert steps == [1, 2]
    options = read_metadata(folder / FINAL)["options"]
    assert {name: options[name] for name in ("epochs", "iterations", "seed", "mask_ratio", "workers")} == {
        "epochs": 2, "iterations": 1, "seed": 3, "mask_ratio": 0.6, "workers": 0,
    }  # fmt: skip
    started, continued = json.loads((folder / RECORD).read_text())["commands"]
    assert started == f"nnunet-invariance {' '.join([*command, *flags])}"
    assert continued == f"nnunet-invariance {' '.join(command)} --c"
    assert f"command: {started}\n" in (folder / "log.txt").read_text()
