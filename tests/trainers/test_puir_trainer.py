"""PUIRTrainer: subsets of modalities in training and prediction, weights matched by channel name, symmetries."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_invariance.augmentation.missing_modalities import ZeroMissingChannels, drop_modalities
from nnunet_invariance.errors import OptionError, UnsupportedConfigurationError, WeightsIncompatibleError
from nnunet_invariance.networks.architectures.puir import PUIRNet
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.networks.presence import present_channels
from nnunet_invariance.trainers.stepping import views_on_device
from nnunet_invariance.weights.checkpoint import load_checkpoint, save_checkpoint
from nnunet_invariance.weights.modality_tables import in_channel_order
from nnunet_invariance.weights.transfer import load_pretrained
from tests.helpers.small_checkpoints import architecture, metadata
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, started, values

PATCH = (16, 16, 16)
#: No auxiliary loss.
NONE = {f"weight_{name}": 0 for name in ("decomposition", "equivariance", "invariance", "distillation")}


def test_dropout_keeps_a_random_non_empty_subset_of_the_modalities():
    available = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4]).repeat(400, 1)
    kept = drop_modalities(available, 0.5, torch.Generator().manual_seed(0)).view(400, 3, 4)
    assert not (kept & ~available.view(400, 3, 4)).any()
    assert torch.equal(kept[:, 1:], available.view(400, 3, 4)[:, 1:])
    number = kept[:, 0].sum(1)
    assert number.min() == 1
    for n, share in [(1, 0.25), (2, 0.25), (3, 0.5)]:
        assert (number == n).float().mean().item() == pytest.approx(share, abs=0.07)
    assert (kept[:, 0, :3].float().mean(0) - kept[:, 0, :3].float().mean()).abs().max() < 0.08
    assert torch.equal(drop_modalities(available, 0.0, torch.Generator()), available)


def test_missing_modalities_stay_empty_through_augmentation():
    class Noise:
        def __call__(self, **sample):
            image = sample["image"] + torch.randn(sample["image"].shape)
            return {**sample, "image": torch.cat((image, image, torch.ones(1, 4, 4, 4)))}

    image = torch.randn(3, 4, 4, 4)
    image[1] = 0
    image[1, 1:, :, :3] = -2.7  # CT, padded by the loader
    views = ZeroMissingChannels(Noise())(image=image)["image"]
    assert [bool(channel.any()) for channel in views] == [True, False, True, True, False, True, True]
    assert torch.equal(ZeroMissingChannels(ComposeTransforms([]))(image=image)["image"][0], image[0])


def test_training_steps_with_all_losses(modalities, results):
    trainer = make_trainer(modalities, "PUIRTrainer_scratch_1epoch", seed=1, equivariance_probability=1.0, prior=4)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = values(trainer.plain_network)
    for _ in range(2):
        batch = next(trainer.dataloader_train)
        losses = trainer.train_step(batch)
        assert set(losses) == {"loss", "invariance", "decomposition", "distillation", "equivariance", "total"}
        assert all(np.isfinite(value) for value in losses.values())
        assert losses["decomposition"] > 0
    after = values(trainer.plain_network)
    moved = [n for n in before if n.startswith(("encoder.", "personalization.")) and n.endswith((".weight", "prior"))]
    assert len(moved) > 10
    assert all(not torch.equal(before[name], after[name]) for name in moved)
    assert trainer.optimizer.param_groups[-1]["weight_decay"] == 0
    shapes = [tuple(p.shape) for p in trainer.optimizer.param_groups[-1]["params"]]
    assert (2, 32) in shapes
    assert (1, 4, 32) in shapes
    counted = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(counted) == len({id(p) for p in counted})
    assert "Memory on the scale of nnU-Net's planner" in log_of(trainer)
    validation = next(trainer.dataloader_val)
    assert np.isfinite(trainer.validation_step(validation)["loss"])


def test_activations_can_be_recomputed_and_losses_switched_off(modalities, results):
    trainer = make_trainer(modalities, "PUIRTrainer_scratch_1epoch", seed=1, checkpointing="on", **NONE)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert trainer.plain_network.checkpointing
    assert "are recomputed" in log_of(trainer)
    assert set(trainer.train_step(next(trainer.dataloader_train))) == {"loss", "total"}
    assert not trainer.aux


def test_no_auxiliary_losses_equal_weights_of_zero(modalities, results):
    values_of = []
    for options in ({"aux": False}, NONE):
        trainer = make_trainer(modalities, "PUIRTrainer_scratch_1epoch", seed=1, **options)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        losses = trainer.train_step(next(trainer.dataloader_train))
        assert set(losses) == {"loss", "total"}
        assert not trainer.aux
        values_of.append((losses["loss"], values(trainer.plain_network)))
    assert values_of[0][0] == values_of[1][0]
    assert_same(values_of[0][1], values_of[1][1])


def test_the_subset_learns_from_the_segmentation_of_all_modalities(modalities, results):
    """The target is that of a pass of its own with all modalities, for which the trainer needs the decoder only."""
    only = {**NONE, "weight_distillation": 1.0, "dropout_ramp": 0.0, "modality_dropout": 1.0}
    trainer, batch = started(modalities, "PUIRTrainer_scratch_1epoch", prior=4, **only)
    given = views_on_device(batch, 2, trainer.device)
    state = trainer.generator.get_state()
    with torch.no_grad():
        _, losses = trainer.losses_of_views(given, len(given["keys"]))
        image = given["views"].first
        available = present_channels(image)
        kept = drop_modalities(available, 1.0, trainer.generator.set_state(state))
        everything, subset = (trainer.network(image, mask)[0] for mask in (available, kept))
    lacking = (kept != available).any(1)
    assert lacking.any()
    classes = [torch.distributions.Categorical(logits=x.movedim(1, -1)) for x in (everything, subset)]
    expected = torch.distributions.kl_divergence(*classes).flatten(1).mean(1)[lacking].sum() / len(image)
    torch.testing.assert_close(losses["distillation"], expected, rtol=1e-4, atol=1e-7)
    assert losses["distillation"] > 0


def test_modalities_are_dropped_more_often_in_the_course_of_the_ramp(modalities, results, monkeypatch):
    asked = []

    def drop(available, probability, generator):
        asked.append(probability)
        return available

    monkeypatch.setattr("nnunet_invariance.trainers.puir.drop_modalities", drop)
    options = {**NONE, "dropout_ramp": 0.5, "modality_dropout": 0.8, "iterations_per_epoch": 4}
    trainer, batch = started(modalities, "PUIRTrainer_scratch_1epoch", prior=4, **options)
    for _ in range(4):
        trainer.train_step(batch)
    assert asked == pytest.approx([0.0, 0.4, 0.8, 0.8])


def test_symmetries_follow_mirroring_and_spacing(modalities, results):
    trainer = make_trainer(modalities, "PUIRTrainer_scratch_1epoch")
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    assert len(trainer.symmetries) == 47
    del trainer.symmetries
    trainer.inference_allowed_mirroring_axes = None
    assert len(trainer.symmetries) == 23
    del trainer.symmetries
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.configuration_manager.configuration["spacing"] = [2.5, 0.8, 0.8]  # mm
    assert len(trainer.symmetries) == 15  # the first axis keeps its place: 16 elements with the identity
    assert not trainer.symmetries[:, [0, 2]].any()


@pytest.fixture
def pointwise(modalities, results):
    """A trainer with a pointwise network, which commutes with all symmetries."""
    trainer = make_trainer(modalities, "PUIRTrainer_scratch_1epoch", seed=1, equivariance_probability=1.0)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    assert len(trainer.symmetries) == 47
    convolution = torch.nn.Conv3d(2, 3, 1)
    trainer.network = lambda x, kept: convolution(x)
    return trainer


def equivariance(trainer, step: int = 0) -> float:
    trainer.step_in_epoch = step
    trainer.generator.manual_seed(3)
    image = torch.randn(4, 2, *[8] * 3, generator=torch.Generator().manual_seed(0))
    return trainer.equivariance(image, torch.ones(4, 2, dtype=torch.bool), trainer.network(image, None)).item()


def test_a_pointwise_network_is_equivariant(pointwise, monkeypatch):
    assert equivariance(pointwise) == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr("nnunet_invariance.trainers.puir.invert_symmetry", lambda x, elements: x)
    assert equivariance(pointwise) > 1e-3


def test_equivariance_passes_are_scaled_and_made_in_the_same_steps_on_all_ranks(pointwise, monkeypatch):
    monkeypatch.setattr("nnunet_invariance.trainers.puir.invert_symmetry", lambda x, elements: x)
    always = equivariance(pointwise)
    pointwise.options = dataclasses.replace(pointwise.options, equivariance_probability=0.25)
    ranks = []
    for pointwise.local_rank in (0, 1):
        pointwise.generator.manual_seed(pointwise.local_rank)
        ranks.append([equivariance(pointwise, step) for step in range(100)])
    assert ranks[0] == ranks[1]
    drawn = [value for value in ranks[0] if value]
    assert 10 < len(drawn) < 40
    assert drawn == pytest.approx([4 * always] * len(drawn))


def test_the_equivariance_pass_gives_every_parameter_a_gradient(modalities, results):
    trainer = make_trainer(modalities, "PUIRTrainer_scratch_1epoch", seed=1, equivariance_probability=1.0, prior=4)
    trainer.initialize()
    image, kept = torch.randn(1, 2, *[32] * 3), torch.ones(1, 2, dtype=torch.bool)
    trainer.equivariance(image, kept, torch.zeros(1, 3, *[32] * 3)).backward()
    assert not [name for name, p in trainer.plain_network.named_parameters() if p.grad is None]


def weights(path, names: list[str], seed: int = 3, length: int = 5, tokens: str = "spatial"):
    """A finished pre-training with different tables for each modality."""
    torch.manual_seed(seed)
    net = PUIRNet(architecture(channels=len(names)), PATCH, tokens, length)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    tensors = {f"network.{name}": t.detach() for name, t in unique_tensors(net).items()}
    plain = metadata(architecture(channels=1), method="puir", pretrained=["encoder"], channel_names=names)
    save_checkpoint(path, tensors, plain)
    return net, load_checkpoint(path)


def test_modalities_are_matched_by_name(tmp_path):
    source, checkpoint = weights(tmp_path / "w.safetensors", ["T1", "T2", "FLAIR"])
    target = PUIRNet(architecture(channels=2), PATCH, length=5)
    ordered = in_channel_order(checkpoint, ["FLAIR", "T1"], PUIRNet.tables)
    report = load_pretrained(target, ordered, branch="student")
    assert report.coverage == 1
    assert not [entry for entry in report.missing if not entry.name.startswith("decoder.")]
    for mine, theirs in zip(target.fusions, source.fusions, strict=True):
        assert torch.equal(mine.modality, theirs.modality[[2, 0]])
    target.decoder.load_state_dict(source.decoder.state_dict())
    x = torch.randn(1, 2, *PATCH)
    wide = torch.stack((x[:, 1], torch.zeros_like(x[:, 0]), x[:, 0]), 1)  # T2 is missing
    torch.testing.assert_close(target(x), source(wide))


def test_other_channel_names_or_priors_are_refused(tmp_path):
    _, checkpoint = weights(tmp_path / "w.safetensors", ["T1", "T2"])
    with pytest.raises(WeightsIncompatibleError, match=r"channels CT: it was pre-trained with T1, T2"):
        in_channel_order(checkpoint, ["T1", "CT"], PUIRNet.tables)
    with pytest.raises(WeightsIncompatibleError, match="cannot distinguish channels with the same name"):
        in_channel_order(checkpoint, ["T1", "T1"], PUIRNet.tables)
    target = PUIRNet(architecture(channels=2), PATCH, length=9)
    before = values(target)
    with pytest.raises(WeightsIncompatibleError, match=r"personalization.retrieval.prior.*options"):
        load_pretrained(target, checkpoint, branch="student")
    assert_same(values(target), before)


def test_unsupported_configurations_are_refused_and_leave_no_files(modalities, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    with pytest.raises(UnsupportedConfigurationError, match="one channel, MRI"):
        make_trainer(tiny, "PUIRTrainer_scratch")
    with pytest.raises(UnsupportedConfigurationError, match="2d"):
        make_trainer(modalities, "PUIRTrainer_scratch", configuration="2d")
    plans = cut_down(modalities.plans, "nnUNetPlans")
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    with pytest.raises(UnsupportedConfigurationError, match="cascade"):
        make_trainer(modalities, "PUIRTrainer_scratch", plans)
    with pytest.raises(OptionError, match="tokens"):
        make_trainer(modalities, "PUIRTrainer_scratch", tokens="cells")
    assert not list(tmp_path.iterdir())


def test_the_planner_counts_the_encoder_once_per_modality(modalities, monkeypatch):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    planner = recursive_find_python_class("", "PUIRPlanner", "nnunetv2.experiment_planning")
    planned = modalities.plans["configurations"]["3d_fullres"]["architecture"]
    words = (planned["network_class_name"], planned["arch_kwargs"], planned["_kw_requires_import"])
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    counts = [planner.static_estimate_VRAM_usage([32] * 3, channels, 3, *words) for channels in (1, 2, 5)]
    assert counts[0] > ExperimentPlanner.static_estimate_VRAM_usage([32] * 3, 1, 3, *words)
    network = PUIRNet(Architecture.from_plans(planned, 5, 3), [32] * 3)
    assert counts[2] == network.compute_conv_feature_map_size([32] * 3)
    assert counts[2] - counts[1] == 3 * (counts[1] - counts[0]) > 0
    assert planner.generate_data_identifier(None, "3d_fullres") == "nnUNetPlans_3d_fullres"
    residual = recursive_find_python_class("", "PUIRPlannerResEncL", "nnunetv2.experiment_planning")
    assert residual.static_estimate_VRAM_usage([32] * 3, 5, 3, *words) == counts[2]


def test_weights_are_matched_by_channel_name_and_a_run_is_continued(modalities, results, tmp_path):
    from nnunet_invariance.weights.locate import FINAL, pretraining_folder

    trainer = make_trainer(modalities, "PUIRTrainer_1epoch", seed=1, prior=4)
    torch.manual_seed(5)
    net = type(trainer).build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 2, 3, False
    )  # fmt: skip
    path = pretraining_folder("puir", modalities.name, "nnUNetPlans", "3d_fullres") / FINAL
    tensors = {f"network.{name}": t.detach() for name, t in unique_tensors(net).items()}
    plain = metadata(architecture(channels=1), method="puir", pretrained=["encoder"], channel_names=["CT", "T1"])
    save_checkpoint(path, tensors, plain)
    trainer.on_train_start()
    assert trainer.transfer_report["coverage"] == 1
    filled = values(trainer.plain_network)
    assert torch.equal(filled["personalization.retrieval.prior"], tensors["network.personalization.retrieval.prior"])
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    checkpoint = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(checkpoint))
    again = make_trainer(modalities, "PUIRTrainer_1epoch", seed=1, prior=4)
    again.load_checkpoint(str(checkpoint))
    assert_same(values(again.plain_network), values(trainer.plain_network))
    assert_same(values(again.aux), values(trainer.aux))
    report = json.loads((next(tmp_path.glob("**/transfer_report.json"))).read_text())
    assert report["method"] == "puir"


@pytest.mark.parametrize(("name", "missing"), [("small", 1), ("no_t1", 0)])
def test_a_missing_channel_has_no_influence_after_preprocessing_and_padding(modalities, tmp_path, name, missing):
    """Also for CT, whose normalisation changes zeros, and in every window of the sliding-window prediction."""
    from acvl_utils.cropping_and_padding.padding import pad_nd_image
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_invariance.networks.presence import present_channels
    from nnunet_invariance.nnunet.missing_channels import fill_missing_channels
    from tests.helpers import tiny_modalities

    tiny_modalities.write_tests(tmp_path / "in")
    fill_missing_channels(tmp_path / "in", tmp_path / "full", "779")
    manager = PlansManager(modalities.plans)
    chosen = manager.get_configuration("3d_fullres")
    dataset = json.loads((modalities.preprocessed / modalities.name / "dataset.json").read_text())
    files = [str(tmp_path / "full" / f"{name}_000{channel}.nii.gz") for channel in range(2)]
    image = chosen.preprocessor_class(verbose=False).run_case(files, None, manager, chosen, dataset)[0]
    if missing == 1:
        assert image[1].max() == image[1].min() != 0  # CT normalisation of zeros
    padded = torch.from_numpy(pad_nd_image(image, [32, 32, 32], "constant", {"constant_values": 0}, False)).float()
    torch.manual_seed(0)
    planned = Architecture.from_plans(chosen.configuration["architecture"], 2, 3)
    net = PUIRNet(planned, chosen.patch_size, length=4)
    for corner in np.ndindex(2, 2, 2):
        low = [c * (n - 32) for c, n in zip(corner, padded.shape[1:], strict=True)]
        window = padded[(slice(None), *(slice(a, a + 32) for a in low))][None]
        assert not present_channels(window)[0, missing]
        assert present_channels(window)[0, 1 - missing]
    other = torch.where(torch.arange(2).view(1, 2, 1, 1, 1) == missing, torch.randn(window.shape), window)
    with torch.no_grad():
        assert torch.equal(net(window), net(other, torch.arange(2)[None] != missing))
