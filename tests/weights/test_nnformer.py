"""Alice's original backbone: shapes, attention, axes, plans, importer, and training with plans that name it."""

import argparse
import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    OptionError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
)
from nnunet_invariance.networks.architectures.nnformer import NNFormerEncoder, NNFormerUNet
from nnunet_invariance.networks.architectures.window_attention import (
    WindowBlock,
    from_windows,
    relative_position_index,
    to_windows,
)
from nnunet_invariance.nnunet.cases import load_volume, scan_cases
from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
from nnunet_invariance.plans.nnformer import NETWORK, nnformer_patch, read_axes, write_nnformer_plans
from nnunet_invariance.plans.soft_tissue_window import SoftTissueWindowNormalization
from nnunet_invariance.pretraining.methods.alice import AliceOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign
from tests.helpers.commands import check_predictions, stock
from tests.helpers.nnformer_files import SMALL, released_index, released_shapes, released_state, write_student
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.threads import threads_for_processes
from tests.helpers.tiny_trainers import make_trainer, values

# ---- the network -----------------------------------------------------------------------------------------------------


def test_the_encoder_has_the_tensors_of_the_release_and_one_position_table():
    with torch.device("meta"):
        encoder = NNFormerEncoder(1)
    found = {name: tuple(t.shape) for name, t in encoder.state_dict().items()}
    assert found.pop("position") == (1, 48, 32, 32, 32)
    wanted = {n.replace("norm", "norms.", 1) if n.startswith("norm") else n: s for n, s in released_shapes().items()}
    assert found == wanted
    assert len(found) == 148  # the release's 149 without its mask token
    trained = sum(p.numel() for n, p in encoder.named_parameters() if n != "position")
    assert trained == pytest.approx(7.65e6, abs=5e3)


@pytest.mark.integration
@pytest.mark.parametrize("size", [(64, 64, 64), (64, 80, 128), (96, 96, 96)])
def test_maps_have_the_planned_strides_whatever_the_patch(size):
    with torch.device("meta"):
        network = NNFormerUNet(2, 3, deep_supervision=True)
        image = torch.empty(1, 2, *size)
        maps, outputs = network.encoder(image), network(image)
    assert [m.shape[1] for m in maps] == network.encoder.output_channels == [2, 48, 96, 192, 384]
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(n // 2**s for n in size) for s in range(5)]
    assert [tuple(o.shape) for o in outputs] == [(1, 3, *(n // 2**s for n in size)) for s in range(4)]


@pytest.mark.parametrize("size", [(48, 64, 64), (64, 72, 64), (64, 64)])
def test_patches_that_do_not_fit_are_named(size):
    with torch.device("meta"):
        encoder = NNFormerEncoder(1, 8)
        image = torch.empty(1, 1, *size)
    with pytest.raises(UnsupportedConfigurationError, match="multiple of 16 and at least 64"):
        encoder(image)


def test_stages_that_the_network_does_not_have_are_named():
    with pytest.raises(UnsupportedConfigurationError, match="expected"):
        NNFormerUNet(1, 2, strides=[[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3])


def test_windows_are_taken_apart_and_put_together():
    x = torch.randn(2, 4, 6, 2, 3)
    windows = to_windows(x, 2)
    assert torch.equal(windows[0], x[0, :2, :2, :2].reshape(8, 3))
    assert torch.equal(from_windows(windows, 2, (4, 6, 2)), x)


def test_every_offset_has_a_row_of_its_own():
    index = relative_position_index(3)
    places = list(itertools.product(range(3), repeat=3))
    rows = {}
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        rows.setdefault(tuple(x - y for x, y in zip(a, b, strict=True)), set()).add(index[i, j].item())
    assert all(len(r) == 1 for r in rows.values())
    assert len({next(iter(r)) for r in rows.values()}) == 125


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(4, 4, 4), (3, 4, 5)])
def test_shifted_windows_are_direct_attention_among_the_places_of_a_window(size, shifted):
    torch.manual_seed(0)
    block = WindowBlock(16, 2, 2, shifted, 0.0).double().eval()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(1, *size, 16, dtype=torch.float64)
    places = list(itertools.product(*(range(n) for n in size)))
    whole, shift = [n + n % 2 for n in size], int(shifted)
    groups = [tuple(((p - shift) % w // 2, p < shift) for p, w in zip(place, whole, strict=True)) for place in places]
    q, k, v = block.attn.qkv(torch.stack([x[0][p] for p in places])).view(-1, 3, 2, 8).unbind(1)
    found = block._attend(x)
    for n, place in enumerate(places):
        seen = [m for m in range(len(places)) if groups[m] == groups[n]]
        parts = []
        for head in range(2):
            scores = []
            for m in seen:
                a, b, c = (p - r + 1 for p, r in zip(place, places[m], strict=True))
                bias = block.attn.relative_position_bias_table[9 * a + 3 * b + c, head]
                scores.append(q[n, head] @ k[m, head] / 8**0.5 + bias)
            parts.append(torch.softmax(torch.stack(scores), 0) @ v[seen, head])
        assert torch.allclose(found[0][place], block.attn.proj(torch.cat(parts)), rtol=1e-10, atol=1e-12)


@pytest.mark.integration
def test_axes_are_turned_before_the_encoder_and_back_after_it():
    torch.manual_seed(0)
    turned, straight = NNFormerEncoder(1, 8, (2, 1, 0)).eval(), NNFormerEncoder(1, 8, (0, 1, 2)).eval()
    straight.load_state_dict(turned.state_dict())
    image = torch.randn(1, 1, 64, 80, 64)
    with torch.inference_mode():
        ours, theirs = turned(image), straight(image.permute(0, 1, 4, 3, 2))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b.permute(0, 1, 4, 3, 2), atol=1e-5)
    assert read_axes([0, 1, 2]) == [2, 1, 0]
    assert read_axes([2, 0, 1]) == [0, 2, 1]  # x stands first, then z and y


# ---- plans and normalisation -----------------------------------------------------------------------------------------


def test_the_window_goes_from_zero_to_one_and_nnunet_finds_it():
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    image = np.array([-1000, -125, 50, 225, 3000], np.int16)
    done = SoftTissueWindowNormalization(False, {}).run(image)
    assert done.tolist() == [0, 0, 0.5, 1, 1]
    assert done.dtype == np.float32
    walk = "nnunetv2.preprocessing.normalization"
    assert recursive_find_python_class("", "SoftTissueWindowNormalization", walk) is SoftTissueWindowNormalization


def test_the_planned_patch_is_cut_to_what_fits():
    assert nnformer_patch((20, 320, 250)) == [64, 320, 240]


def test_two_dimensional_plans_are_refused_and_nothing_is_written(tiny):
    with pytest.raises(UnsupportedConfigurationError, match="2-D"):
        write_nnformer_plans(tiny.name, configuration="2d")
    assert not list((tiny.preprocessed / tiny.name).glob("*nnformer*"))


@pytest.fixture
def plans(tiny, tmp_path, monkeypatch):
    """Plans of the preset, with a network of an eighth of the width."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    path = write_nnformer_plans(tiny.name, new_plans_name="nnUNetPlans_small")
    content = json.loads(path.read_text())
    configuration = content["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [64, 64, 64]
    assert configuration["architecture"]["network_class_name"] == NETWORK
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]  # the tiny data set is no CT
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = SMALL["features_per_stage"]
    configuration["nnunet_invariance"] = {"iterations_per_epoch": 1, "val_iterations_per_epoch": 1}
    path.write_text(json.dumps(content))
    yield content
    for file in path.parent.glob("nnUNetPlans_small*.json"):
        file.unlink()


def test_a_patch_that_does_not_fit_stops_the_pretraining_before_it_writes(tiny, plans, tmp_path):
    plans["configurations"]["3d_fullres"]["patch_size"] = [64, 72, 64]
    (tiny.preprocessed / tiny.name / "nnUNetPlans_small.json").write_text(json.dumps(plans))
    with pytest.raises(UnsupportedConfigurationError, match=r"\(64, 72, 64\) voxels"):
        run_pretraining("alice", tiny.name, "3d_fullres", "nnUNetPlans_small", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_preset_that_it_cannot_run_says_what_it_can(tiny, plans):
    words = ["preset=paper", "head_width=16", "num_prototypes=16"]
    with pytest.raises(OptionError, match=r"NNFormerEncoder contains.*--set preset=paper encoding=dense"):
        run_pretraining("alice", tiny.name, "3d_fullres", "nnUNetPlans_small", device="cpu", settings=words)


def test_alice_pretrains_it_with_the_released_settings_and_the_trainer_takes_it(tiny, plans, caplog):
    words = ["epochs=1", "iterations=1", "workers=0", "head_width=16", "num_prototypes=16"]
    with caplog.at_level(logging.INFO, "nnunet_invariance"):
        path = run_pretraining("alice", tiny.name, "3d_fullres", "nnUNetPlans_small", device="cpu", settings=words)
    checkpoint = load_checkpoint(path)
    released = {**AliceOptions.presets["release"], "head_width": 16, "mim_voxels": "masked"}
    assert {name: checkpoint.metadata["options"][name] for name in released} == released
    changed = (
        "mask_mode=tube casa=residual casa_target=shared target_tokens=decoder collapse_guard=center "
        "weight_inter=1.0 weight_mim=5.0 teacher_temperature=0.01 teacher_temperature_start=0.008 ema_start=0.996 "
        "head_width=16"
    )
    assert changed in (path.parent / "log.txt").read_text()
    trainer = make_trainer(tiny, "AliceTrainer_1epoch", plans)
    trainer.on_train_start()
    assert trainer.transfer_report["coverage"] == 1
    section = checkpoint.section("network")
    for name, value in values(trainer.network.encoder).items():
        assert torch.equal(value, section[f"encoder.{name}"]), name
    losses = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(loss) for loss in losses.values())
    assert "info_nce" in losses
    before = values(trainer.network)["encoder.position"]
    assert before.abs().sum() > 0


# ---- the release's files ---------------------------------------------------------------------------------------------


def write_teacher(path, state):
    torch.save(
        {"state_dict": {f"backbone.{k}": v for k, v in {**state, "final.0.up.weight": torch.ones(1)}.items()}}, path
    )
    return path


@pytest.mark.integration
@pytest.mark.parametrize("write", [write_student, write_teacher])
def test_both_layouts_of_the_release_are_imported_with_their_own_index(tmp_path, write, capsys):
    state = released_state()
    file = write(tmp_path / "alice.pth", state)
    assert main(["weights", "inspect", str(file)]) == 0
    assert "alice: a backbone of Alice's release" in capsys.readouterr().out
    checkpoint = load_checkpoint(import_foreign(file, importer="alice"))
    section, metadata = checkpoint.section("network"), checkpoint.metadata
    assert metadata["method"] == "alice"
    assert metadata["pretrained"] == ["encoder"]
    assert metadata["normalization_schemes"] == ["SoftTissueWindowNormalization"]
    assert "decoder.layers.0.Upsample.norm.weight" in metadata["options"]["left_out"]
    assert not section.pop("encoder.position").any()
    assert len(section) == 148
    for name, value in section.items():
        theirs = (
            name.removeprefix("encoder.").replace("norms.", "norm") if name.startswith("encoder.norms") else name[8:]
        )
        assert torch.equal(value, state[f"model_down.{theirs}"]), name


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda s: s.pop("model_down.norm2.weight"), WeightsIncompatibleError, r"norms\.2\.weight: not in the file"),
        (
            lambda s: s.update({"layers.9.weight": torch.ones(1)}),
            CheckpointCorruptError,
            "layers.9.weight, which is in",
        ),
        (
            lambda s: s["model_down.layers.0.blocks.0.attn.relative_position_index"].add_(400),
            CheckpointCorruptError,
            "343 rows",
        ),
    ],
)
def test_other_layouts_are_refused_and_nothing_is_written(tmp_path, change, error, said):
    state = released_state()
    change(state)
    file = write_student(tmp_path / "alice.pth", state)
    with pytest.raises(error, match=said):
        import_foreign(file)
    assert [p.name for p in tmp_path.iterdir()] == ["alice.pth"]


def training_checkpoint(state):
    """Layout of the release's own checkpoints; the teacher's tensors are twice the student's."""
    student = {f"module.backbone.{k}": v for k, v in state.items()}
    teacher = {f"backbone.{k}": v if k.endswith("index") else 2 * v for k, v in state.items()}
    rest = {"epoch": 3, "args": argparse.Namespace(arch="nnformer"), "optimizer": {}, "alice_loss": {}}
    student["module.head.mlp.0.weight"] = teacher["head.mlp.0.weight"] = torch.ones(2, 2)
    return {"student": student, "teacher": teacher, **rest}


@pytest.mark.integration
@pytest.mark.parametrize(("side", "factor"), [("teacher", 2), ("student", 1)])
def test_a_training_checkpoint_gives_its_teacher_or_else_its_student(tmp_path, side, factor):
    state, file = released_state(), tmp_path / "checkpoint.pth"
    content = training_checkpoint(state)
    if side == "student":
        del content["teacher"]
    torch.save(content, file)
    checkpoint = load_checkpoint(import_foreign(file))
    assert checkpoint.metadata["method"] == "alice"
    assert checkpoint.metadata["options"]["read"] == side
    name = "layers.1.downsample.reduction.weight"
    assert torch.equal(checkpoint.section("network")[f"encoder.{name}"], factor * state[f"model_down.{name}"])


@pytest.mark.integration
def test_a_training_checkpoint_of_another_method_or_with_a_gap_is_refused(tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"student": {"module.backbone.x": torch.ones(1)}, "teacher": {"backbone.x": torch.ones(1)}}, file)
    with pytest.raises(WeightsIncompatibleError, match="No importer reads"):
        import_foreign(file)
    content = training_checkpoint(released_state())
    del content["teacher"]["backbone.model_down.norm2.weight"]
    torch.save(content, file)
    with pytest.raises(WeightsIncompatibleError, match=r"norms\.2\.weight: not in the file"):
        import_foreign(file)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_weights_plan_writes_the_plan_of_an_imported_file(tiny, plans, tmp_path, capsys):
    file = import_foreign(write_teacher(tmp_path / "alice.pth", released_state()))
    fitted = fit_plans_to_checkpoint(tiny.name, file, new_plans_name="nnUNetPlans_small_alice", keep="checkpoint")
    content = json.loads(fitted.path.read_text())
    configuration = content["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [64, 64, 64]
    assert configuration["normalization_schemes"] == ["SoftTissueWindowNormalization"]
    assert configuration["data_identifier"] == "nnUNetPlans_small_alice_3d_fullres"
    assert configuration["nnunet_invariance"]["branch"] == "student"
    assert "encoder: 100.00% from the file" in fitted.decisions
    with threads_for_processes():
        preprocess_dataset(777, "nnUNetPlans_small_alice", ("3d_fullres",), (1,), show_progress_bar=False)
    folder = fitted.path.parent / configuration["data_identifier"]
    cases, _ = scan_cases(folder, 1, (16, 16, 16))
    ranges = [(float(volume.min()), float(volume.max())) for volume in (load_volume(case)[:] for case in cases)]
    assert len(ranges) == 6
    assert all(0 <= low < high <= 1 for low, high in ranges)
    shutil.rmtree(folder)
    own = fit_plans_to_checkpoint(tiny.name, file, "nnUNetPlans_small", new_plans_name="nnUNetPlans_small_kept")
    trainer = make_trainer(tiny, "AliceTrainer_1epoch", json.loads(own.path.read_text()))
    trainer.on_train_start()
    assert trainer.transfer_report["coverage"] == 1
    index = trainer.network.encoder.layers[0].blocks[1].attn.relative_position_index
    assert torch.equal(index, released_index(4))
    assert main(["weights", "plan", tiny.name]) == 2
    assert "either FILE or --preset" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.commands
def test_stock_commands_train_and_predict_under_a_plan_that_names_it(tiny, plans, tmp_path):
    words = ("-p", "nnUNetPlans_small", "-tr", "AliceTrainer_scratch_1epoch", "-device", "cpu")
    stock("nnUNetv2_train", "777", "3d_fullres", "0", *words, nnUNet_results=str(tmp_path))
    images, out = tiny.raw / tiny.name / "imagesTs", tmp_path / "predicted"
    where = ("-i", images, "-o", out, "-d", "777", "-c", "3d_fullres", "-f", "0", "--disable_tta")
    stock("nnUNetv2_predict", *where, *words, nnUNet_results=str(tmp_path))
    check_predictions(out)
