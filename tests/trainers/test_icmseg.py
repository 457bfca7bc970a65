"""ICMSegTrainer on the tiny data set, and plans copies with z-score."""

import copy
import functools
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.interventions.base import Domain, match_statistics
from nnunet_invariance.augmentation.interventions.slaug import saliency_fusion
from nnunet_invariance.augmentation.style_names import StyleName
from nnunet_invariance.augmentation.views import split_views
from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OptionError, OutputError, WeightsNotFoundError
from nnunet_invariance.losses.consistency import ConsistencyLoss
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import gather_positions, sample_positions
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.options import BaselineOptions, PretrainedOptions
from nnunet_invariance.plans.style_options import ICMSegTrainerOptions
from nnunet_invariance.plans.unlabelled import UnlabelledOptions
from nnunet_invariance.plans.zscore import write_zscore_plans
from nnunet_invariance.trainers.targets import tissue_labels
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, started, values, with_views, write_weights

pytestmark = pytest.mark.usefixtures("results")


def slow_divergence(first, second):
    """The divergence voxel by voxel."""
    total = 0.0
    p, q = first.double().softmax(1), second.double().softmax(1)
    for a, b in zip(
        p.flatten(2).transpose(1, 2).flatten(0, 1), q.flatten(2).transpose(1, 2).flatten(0, 1), strict=True
    ):
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            m = (x + y) / 2
            total += 0.5 * (x * math.log(x / m) + y * math.log(y / m))
    return total / (first.numel() / first.shape[1])


# ---- consistency -----------------------------------------------------------------------------------------------------


def test_consistency_equals_the_divergence_computed_voxel_by_voxel():
    first, second = (torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(s)) * 3 for s in (0, 1))
    assert ConsistencyLoss()(first, second).item() == pytest.approx(slow_divergence(first, second), rel=1e-5)
    assert ConsistencyLoss()(first, first).item() == pytest.approx(0, abs=1e-7)
    assert ConsistencyLoss()(first, second).item() == pytest.approx(ConsistencyLoss()(second, first).item())
    far = torch.tensor([[100.0, -100.0]])
    assert ConsistencyLoss()(far, -far).item() == pytest.approx(math.log(2))
    a, b = first[:, :1], second[:, :1]
    yes_no = [torch.cat((x, torch.zeros_like(x)), 1) for x in (a, b)]
    assert ConsistencyLoss(multilabel=True)(a, b).item() == pytest.approx(ConsistencyLoss()(*yes_no).item(), rel=1e-5)
    pair = [x.double().requires_grad_() for x in (first[:1, :, :2, :2], second[:1, :, :2, :2])]
    assert torch.autograd.gradcheck(ConsistencyLoss(), pair)


# ---- training --------------------------------------------------------------------------------------------------------


def test_an_epoch_without_a_checkpoint_starts_from_random_weights(tiny):
    trainer = make_trainer(tiny, "ICMSegTrainer_1epoch", seed=1, aux_weight=0.1, consistency_weight=1.0)
    trainer.run_training()
    assert "No checkpoint is named: random weights" in log_of(trainer)
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    block = checkpoint["nnunet_invariance"]
    assert block["method"] == "icmseg"
    assert block["transfer_report"] == {"location": "none: random weights"}
    assert block["options"]["style"] == "mixed"
    for name in ("train_info_nce", "train_consistency", "train_total", "encoder_lr"):
        assert np.isfinite(trainer.logger.get_value(name, -1))
    assert trainer.logger.get_value("encoder_lr", -1) == trainer.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("style", INTERVENTIONS)
def test_every_style_trains_a_step(tiny, style):
    trainer, batch = started(tiny, "ICMSegTrainer", style=style, aux_weight=0.1)
    before = values(trainer.network.encoder)
    losses = trainer.train_step(batch)
    assert all(np.isfinite(value) for value in losses.values())
    after = values(trainer.network.encoder)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("conv.weight"))
    assert trainer.feature_hook._skips is None


def test_gradients_equal_those_of_all_losses_computed_separately(tiny):
    options = {"aux_weight": 0.7, "consistency_weight": 0.3, "num_positions": 100, "stages": [1, 2]}
    trainer, batch = started(tiny, "ICMSegTrainer", precision="fp32", **options)
    network, aux = copy.deepcopy(trainer.network), copy.deepcopy(trainer.aux)
    network.encoder._forward_hooks.clear()
    state = trainer.generator.get_state()
    styled = trainer.style_view(with_views(trainer, batch), 2)
    trainer.generator.set_state(state)
    trainer.optimizer.step = lambda: None
    losses = trainer.train_step(batch)

    generator = torch.Generator()
    generator.set_state(state)
    views = split_views(batch["data"], 1)
    torch.rand(2, generator=generator)  # which samples are styled
    INTERVENTIONS["mixed"]().sample(Domain(tuple(views.first.shape), 3), generator)
    outputs = [network(view) for view in (views.first, styled)]
    segmentation = sum(trainer.loss(o, batch["target"]) for o in outputs) / 2
    maps = [network.encoder(view) for view in (views.first, styled)]
    contrasts = []
    for stage in (1, 2):
        index, counts = sample_positions(views.valid_mask, maps[0][stage].shape[2:], 100, generator)
        rows = [aux[f"projection_{stage}"](gather_positions(m[stage], index)) for m in maps]
        contrasts.append(PatchInfoNCE(0.2)(*rows, counts))
    info_nce, divergence = sum(contrasts) / 2, ConsistencyLoss()(outputs[0][0], outputs[1][0])
    total = segmentation + 0.7 * info_nce + 0.3 * divergence
    total.backward()
    expected = [*network.parameters(), *aux.parameters()]
    torch.nn.utils.clip_grad_norm_(expected, 12)
    for p, q in zip([*trainer.network.parameters(), *trainer.aux.parameters()], expected, strict=True):
        assert q.grad is None or torch.allclose(p.grad, q.grad, atol=1e-5)
    for name, value in (("loss", segmentation), ("info_nce", info_nce), ("consistency", divergence), ("total", total)):
        assert losses[name] == pytest.approx(value.item(), rel=1e-4)


def test_the_style_view_changes_only_the_image(tiny):
    trainer, batch = started(tiny, "ICMSegTrainer", style="clusters")
    moved = with_views(trainer, batch)
    moved["views"].valid_mask[:, :, :8] = 0  # as if padded
    target = batch["target"][0].clone()
    view = trainer.style_view(moved, 2)
    image = moved["views"].second
    assert torch.equal(view[:, :, :8], image[:, :, :8])
    assert not torch.allclose(view[:, :, 8:], image[:, :, 8:], atol=0.1)
    assert torch.equal(batch["target"][0], target)
    assert not view.requires_grad
    assert not torch.equal(view, trainer.style_view(moved, 2))  # sampled anew in every step
    assert trainer.style_view(moved, 1).shape[0] == 1


def test_slaug_is_fused_by_the_gradient_of_the_trainers_loss(tiny):
    trainer, batch = started(tiny, "ICMSegTrainer", style="slaug", tissues="labels")
    moved = with_views(trainer, batch)
    network, state = copy.deepcopy(trainer.network), trainer.generator.get_state()
    view = trainer.style_view(moved, 2)
    assert all(parameter.grad is None for parameter in trainer.network.parameters())
    trainer.generator.set_state(state)
    torch.rand(2, generator=trainer.generator)  # which samples are styled
    image, (labels, classes) = moved["views"].second, tissue_labels(batch["target"][0], trainer.label_manager)
    intervention = INTERVENTIONS["slaug"]()
    params = intervention.sample(Domain(tuple(image.shape), classes), trainer.generator)
    whole, local = intervention.apply_global(image, params), intervention.apply(image, labels, params)
    inside = moved["views"].valid_mask > 0
    seen = torch.where(inside, match_statistics(whole, image), image).requires_grad_()
    trainer.loss(network(seen), batch["target"]).backward()
    fused = match_statistics(saliency_fusion(whole, local, seen.grad), image)
    assert torch.allclose(view, torch.where(inside, fused, image), atol=1e-4)


def test_regions_are_converted_to_labels():
    target = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1]]).view(1, 2, 2, 2).bool()

    class Regions:
        has_regions = True

    labels, classes = tissue_labels(target, Regions())
    assert labels.flatten().tolist() == [2, 1, 0, 1]
    assert classes == 3


def test_without_auxiliary_losses_a_scratch_step_equals_the_baseline(tiny):
    ours, batch = started(tiny, "ICMSegTrainer_scratch", aux=False)
    stock = make_trainer(tiny, "BaselineTrainer", seed=1)
    stock.on_train_start()
    stock.on_train_epoch_start()
    for trainer in (ours, stock):
        trainer.train_step(copy.deepcopy(batch))
    assert not ours.aux
    assert_same(values(ours.network), values(stock.network))


def test_out_of_memory_halves_the_second_view(tiny):
    trainer, batch = started(tiny, "ICMSegTrainer")
    forward, sizes = trainer.network.forward, []

    def short_of_memory(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    trainer.network.forward = short_of_memory
    losses = trainer.train_step(batch)
    trainer.train_step(batch)
    assert sizes == [4, 3, 3]
    assert all(np.isfinite(value) for value in losses.values())
    assert log_of(trainer).count("the second view is made for 1 of 2 samples") == 1


def test_compiled_steps_equal_eager_steps(tiny, monkeypatch):
    plain, batch = started(tiny, "ICMSegTrainer", style="slaug")
    expected = plain.train_step(copy.deepcopy(batch))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        patch.setattr(type(plain), "_do_i_compile", lambda self: True)
        compiled, _ = started(tiny, "ICMSegTrainer", style="slaug")
    losses = compiled.train_step(copy.deepcopy(batch))
    assert {n: float(v) for n, v in losses.items()} == pytest.approx(
        {n: float(v) for n, v in expected.items()}, rel=1e-4
    )
    torch._dynamo.reset()


def test_a_seed_makes_styles_and_steps_reproducible(tiny):
    runs = []
    for _ in range(2):
        trainer, batch = started(tiny, "ICMSegTrainer")
        trainer.train_step(batch)
        trainer.train_step(batch)
        runs.append({**values(trainer.network), **values(trainer.aux)})
    assert_same(*runs)


def test_mirroring_can_be_switched_off_for_training_and_prediction(tiny):
    trainer, _ = started(tiny, "ICMSegTrainer", mirroring=[])
    assert trainer.inference_allowed_mirroring_axes is None
    names = [type(t).__name__ for t in trainer.dataloader_train.data_loader.loader.transforms.geometry.transforms]
    assert "MirrorTransform" not in names
    trainer, _ = started(tiny, "ICMSegTrainer")
    assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)


def test_two_dimensional_plans_train(tiny):
    """nnU-Net trains 2d on slices of the preprocessed volumes."""
    plans = cut_down(tiny.plans, "nnUNetPlans", iterations_per_epoch=2, val_iterations_per_epoch=1)
    flat = copy.deepcopy(plans["configurations"]["2d"])
    flat.update(
        patch_size=[32, 32], batch_size=4, data_identifier=plans["configurations"]["3d_fullres"]["data_identifier"]
    )
    kwargs = flat["architecture"]["arch_kwargs"]
    kwargs.update(n_stages=3, features_per_stage=[8, 16, 32], kernel_sizes=[[3, 3]] * 3)
    kwargs.update(strides=[[1, 1], [2, 2], [2, 2]], n_conv_per_stage=[2] * 3, n_conv_per_stage_decoder=[2] * 2)
    flat["nnunet_invariance"] = {
        "seed": 1,
        "iterations_per_epoch": 2,
        "val_iterations_per_epoch": 1,
        "aux_weight": 0.1,
        "num_positions": 64,
    }
    plans["configurations"]["2d"] = flat
    trainer = make_trainer(tiny, "ICMSegTrainer_1epoch", plans, "2d")
    trainer.run_training()
    assert trainer.stages == [2]
    assert np.isfinite(trainer.logger.get_value("train_total", -1))
    assert Path(trainer.output_folder, "checkpoint_final.pth").is_file()


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_a_named_checkpoint_of_any_method_is_loaded(tiny, tmp_path, monkeypatch):
    checkpoint = write_weights(tiny, tmp_path / "alice.safetensors")
    trainer, _ = started(tiny, "ICMSegTrainer", checkpoint=str(checkpoint.path))
    section = checkpoint.section("teacher")
    encoder = values(trainer.network.encoder)
    assert_same(encoder, {name: section[f"encoder.{name}"] for name in encoder})
    assert trainer.transfer_report["location"] == "plans block, field 'checkpoint'"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(checkpoint.path))
    trainer, _ = started(tiny, "ICMSegTrainer")
    assert_same(values(trainer.network.encoder), encoder)
    scratch, _ = started(tiny, "ICMSegTrainer_scratch")
    assert scratch.transfer_report == {"location": "none: scratch"}


def test_other_locations_are_not_searched(tiny, monkeypatch):
    write_weights(tiny, method="icmseg")
    write_weights(tiny)
    trainer, _ = started(tiny, "ICMSegTrainer")
    assert trainer.transfer_report == {"location": "none: random weights"}
    trainer = make_trainer(tiny, "ICMSegTrainer", checkpoint="missing.safetensors")
    with pytest.raises(WeightsNotFoundError, match=r"missing\.safetensors.*no such file"):
        trainer.on_train_start()


# ---- options ---------------------------------------------------------------------------------------------------------


def test_option_defaults_and_wrong_values():
    options = ICMSegTrainerOptions()
    assert (options.style, options.mirroring, options.stages) == ("mixed", "auto", None)
    assert options.consistency_weight == 0
    assert options.encoder_lr_factor == 1
    for field, value, expected in (
        ("style", "bezier", "one of 'mixed', 'gin'"),
        ("consistency_weight", -1, r"\[0, 100\]"),
        ("mirroring", 1, "'all', 'auto'"),
        ("stages", [], "different whole numbers"),
        ("stages", [1, 1], "different whole numbers"),
        ("stages", [-1], "different whole numbers"),
        ("stages", 2, "different whole numbers"),
    ):
        with pytest.raises(OptionError, match=f"'{field}'.*expected .*{expected}"):
            read_options(ICMSegTrainerOptions, {"nnunet_invariance": {field: value}})


def test_other_trainers_ignore_its_options():
    block = {"nnunet_invariance": {"style": "gin", "seed": 2}}
    assert read_options(BaselineOptions, block) == BaselineOptions(seed=2)
    assert read_options(PretrainedOptions, block) == PretrainedOptions(seed=2)


def test_the_options_name_every_intervention():
    assert set(get_args(StyleName)) == INTERVENTIONS.keys()
    for name in INTERVENTIONS:
        assert ICMSegTrainerOptions(style=name).style == UnlabelledOptions(cases="rest", strong=name).strong


def test_a_missing_stage_is_refused(tiny):
    trainer = make_trainer(tiny, "ICMSegTrainer", aux_weight=0.1, stages=[1, 3])
    with pytest.raises(OptionError, match=r"'stages'.*\[1, 3\].*the stages 0 to 2"):
        trainer.initialize()


# ---- CT normalisation ------------------------------------------------------------------------------------------------


@pytest.fixture
def ct_plans(tiny):
    """Plans like those of a CT data set."""
    plans = cut_down(tiny.plans, "ctPlans", iterations_per_epoch=1, val_iterations_per_epoch=1)
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    (tiny.preprocessed / tiny.name / "ctPlans.json").write_text(json.dumps(plans))
    yield plans
    for file in (tiny.preprocessed / tiny.name).glob("ctPlans*.json"):
        file.unlink()


def test_style_plan_writes_z_score_with_its_own_data_identifier(tiny, ct_plans, capsys):
    folder = tiny.preprocessed / tiny.name
    before = (folder / "ctPlans.json").read_text()
    assert main(["style", "plan", tiny.name, "-p", "ctPlans"]) == 0
    output = capsys.readouterr().out
    copied = json.loads((folder / "ctPlans_zscore.json").read_text())
    configuration = copied["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    assert configuration["data_identifier"] == "ctPlans_zscore_3d_fullres"
    assert configuration["nnunet_invariance"] == ct_plans["configurations"]["3d_fullres"]["nnunet_invariance"]
    assert copied["plans_name"] == "ctPlans_zscore"
    assert (folder / "ctPlans.json").read_text() == before
    assert "Hounsfield" in output
    assert "nnUNetv2_preprocess -d 777 -plans_name ctPlans_zscore -c 3d_fullres" in output
    assert "-p ctPlans_zscore -tr ICMSegTrainer" in output
    assert write_zscore_plans(tiny.name, "ctPlans").name == "ctPlans_zscore.json"  # an identical copy
    assert main(["style", "plan", tiny.name, "-p", "ctPlans", "--name", "ctPlans_mine"]) == 0
    (folder / "ctPlans_mine.json").write_text("{}")
    with pytest.raises(OutputError, match=r"ctPlans_mine\.json exists"):
        write_zscore_plans(tiny.name, "ctPlans", new_plans_name="ctPlans_mine")


def test_style_plan_without_ct_explains_that_no_change_is_needed(tiny, capsys):
    assert main(["style", "plan", tiny.name]) == 2
    assert "ZScoreNormalization, not with CTNormalization" in capsys.readouterr().err


def test_ct_normalisation_gives_a_warning(tiny, ct_plans):
    trainer, _ = started(tiny, "ICMSegTrainer", plans=ct_plans)
    assert "WARNING: ctPlans, 3d_fullres: CTNormalization" in log_of(trainer)
    assert f"nnunet-invariance style plan {tiny.name} -p ctPlans -c 3d_fullres" in log_of(trainer)
    trainer, _ = started(tiny, "ICMSegTrainer")
    assert "CTNormalization clips" not in log_of(trainer)
