"""`pretrain puir`: its views, its errors, and learning of a static mapping between modalities."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_invariance.augmentation.cube_group import invert_symmetry
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import OptionError, UnsupportedConfigurationError
from nnunet_invariance.networks.presence import present_channels
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.engine.schedule import LoopOptions
from nnunet_invariance.pretraining.methods.puir import PUIR, PUIROptions
from nnunet_invariance.pretraining.methods.puir_diagnostics import collapse_warnings, measure, sample_present_channels
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.nnunet_export import export_nnunet
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.small_checkpoints import anisotropic, architecture
from tests.helpers.three_tissues import PATCH, batch, individuals


def method(channels: int = 3, **options) -> PUIR:
    torch.manual_seed(0)
    planned = architecture(channels=channels, classes=channels, features=(8, 16, 16))
    return PUIR(Setup(planned, PATCH, (1.0, 1.0, 1.0), 2, False, ()), PUIROptions(prior=8, queue=6, **options))


def views_of(puir: PUIR, image: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return puir.make_views(batch(image), torch.Generator().manual_seed(seed))


def test_axes_with_other_voxel_sizes_are_not_exchanged():
    anisotropic = PUIR(replace(method().setup, spacing=(2.5, 0.8, 0.8)), PUIROptions(prior=8))
    assert len(method().symmetries) == 48
    assert len(anisotropic.symmetries) == 16
    assert not anisotropic.symmetries[:, [0, 2]].any()  # exchanges of the first axis


def test_views_transform_each_modality_by_its_own_symmetry_and_keep_missing_ones_empty():
    puir, image = method(cutout=0.0), individuals(4, 0)
    image[0, 1] = -2.5
    image[1] = 0
    views = views_of(puir, image)
    expected = torch.ones(4, 3, dtype=torch.bool)
    expected[0, 1], expected[1] = False, False
    assert torch.equal(views["present"], expected)
    back = invert_symmetry(views["student"].flatten(0, 1)[:, None], views["elements"].flatten(0, 1)).view_as(image)
    assert torch.equal(back, views["image"])
    assert torch.equal(views["second"], views["image"])
    assert len(views["elements"].flatten(0, 1).unique(dim=0)) > 6
    noisy = views_of(method(cutout=0.3), image)
    assert not noisy["student"][~expected].any()
    assert torch.equal(present_channels(noisy["student"]), expected)
    here = torch.take_along_dim(expected, views["sources"], 1)
    assert torch.equal(here, views["source_mask"])
    assert not (views["subset"] & ~expected).any()
    assert torch.equal(views["subset"].any(1), expected.any(1))


def test_a_missing_modality_changes_no_loss_and_losses_are_finite_without_any():
    puir, image = method(), individuals(3, 0)
    image[0, 2] = 0
    other = image.clone()
    other[0, 2] = 9.0
    losses = [puir(views_of(puir, x), 0.0).losses for x in (image, other)]
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name
    output = puir(views_of(puir, torch.zeros_like(image)), 0.0)
    sum(output.losses.values()).backward()
    assert all(value == 0 for value in output.losses.values())
    assert all(p.grad.isfinite().all() for p in puir.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{}, {"anchor": "running"}, {"tokens": "channel"}, {"weight_contrast": 0.0}])
def test_every_trained_parameter_has_a_gradient(options):
    puir = method(**options)
    output = puir(views_of(puir, individuals(3, 0)), 0.0)
    sum(puir.loss_weights[name] * value for name, value in output.losses.items()).backward()
    idle = [name for name, p in puir.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert ("contrast" in output.losses) == (options != {"weight_contrast": 0.0})


@pytest.mark.parametrize(
    ("planned", "patch"),
    [(architecture("ResidualEncoderUNet", 2, 2), PATCH), (anisotropic(2), (8, 16, 16))],
    ids=["residual", "anisotropic"],
)
def test_other_plans_give_every_parameter_a_gradient(planned, patch):
    setup = Setup(replace(planned, num_classes=2), patch, (2.0, 1.0, 1.0), 2, False, ())
    puir = PUIR(setup, PUIROptions(prior=8, queue=6))
    output = puir(views_of(puir, torch.randn(2, 2, *patch)), 0.0)
    sum(puir.loss_weights[name] * value for name, value in output.losses.items()).backward()
    assert [name for name, p in puir.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_queue_contains_the_newest_rows_first():
    puir = method()
    output = puir(views_of(puir, individuals(2, 0)), 0.0)
    assert output.losses["contrast"] > 0  # six rows, three of another case
    puir.after_step(output, 0.0)
    assert puir.heads.queue_ids.tolist() == [[0, -1]] * 3 + [[1, -1]] * 3
    assert torch.equal(puir.heads.queue, output.rows["keys"])


def test_the_queue_contains_the_rows_of_all_accumulated_batches(tmp_path):
    puir = method()
    loop = Loop(puir, LoopOptions(grad_accum_steps=2), DistributedContext(0, 1, torch.device("cpu")), tmp_path, {})
    batches = [{**batch(individuals(1, n)), "case": torch.tensor([7 + n]), "keys": [f"case_{7 + n}"]} for n in range(2)]
    loop._train_step(batches, tqdm(disable=True))
    assert puir.heads.queue_ids.tolist() == [[7, -1]] * 3 + [[8, -1]] * 3
    assert (puir.heads.queue.norm(dim=1) > 0).all()


def test_a_collapse_gives_warnings():
    generator, present = torch.Generator().manual_seed(0), torch.ones(4, 3, dtype=torch.bool)
    profiles = torch.randn(4, 1, 8, 4, 4, 4, generator=generator).expand(-1, 3, -1, -1, -1, -1)
    healthy = {name: value.item() for name, value in measure(profiles, present).items()}
    assert collapse_warnings(healthy) == []
    assert healthy["modality_share"] == pytest.approx(0, abs=1e-6)
    assert healthy["variation"] == pytest.approx(1, rel=0.05)
    assert healthy["individual_share"] == pytest.approx(3 / 4, rel=0.05)  # of four, less their mean
    everybody = {name: v.item() for name, v in measure(profiles[:1].expand(4, 3, 8, 4, 4, 4), present).items()}
    assert "for every subject" in collapse_warnings(everybody)[0]
    shrunk = {name: value.item() for name, value in measure(profiles / 100, present).items()}
    assert "shrunk" in collapse_warnings(shrunk)[0]
    same = {name: v.item() for name, v in measure(profiles[:1, :, :, :1].expand(4, 3, 8, 4, 4, 4), present).items()}
    assert healthy["variation"] > same["variation"]
    constant = torch.randn(8, generator=generator).view(1, 1, 8, 1, 1, 1).expand(4, 3, 8, 4, 4, 4)
    warnings = collapse_warnings({name: v.item() for name, v in measure(constant, present).items()})
    assert ["(--set weight_" in warning for warning in warnings] == [True] * 3  # each has a remedy
    apart = torch.randn(4, 3, 8, 4, 4, 4, generator=generator)
    assert measure(apart, present)["modality_share"].item() == pytest.approx(2 / 3, rel=0.05)


def test_sources_are_different_and_present_first():
    present = torch.tensor([[True, False, True], [False, False, True]])
    index, counts = sample_present_channels(present, 2, torch.Generator().manual_seed(0))
    assert sorted(index[0].tolist()) == [0, 2]
    assert index[1, 0] == 2
    assert counts.tolist() == [[True, True], [True, False]]


@pytest.mark.integration
def test_a_static_mapping_is_learned_and_generalises_to_new_individuals():
    puir = method(weight_contrast=0.1, weight_equivariance=0.1, weight_invariance=0.1, cutout=0.0)
    optimizer = torch.optim.AdamW(puir.parameters(), lr=3e-3)
    people = individuals(40, 1)
    for step in range(50):
        views = views_of(puir, people[torch.randint(40, (4,), generator=torch.Generator().manual_seed(step))], step)
        loss = sum(puir.loss_weights[name] * value for name, value in puir(views, 0.0).losses.items())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(puir.parameters(), 3.0)
        optimizer.step()
    new = individuals(12, 99)
    with torch.no_grad():
        profiles = puir.network.estimate(new).profiles
        rebuilt = torch.stack([puir.heads.decoder(profiles[:, i]) for i in range(3)], 1)
    error = (rebuilt - new[:, None]).square().flatten(3).mean((0, 3))
    copied = (new[:, :, None] - new[:, None]).square().flatten(3).mean((0, 3))
    scale = new.var((0, 2, 3, 4))
    others = ~torch.eye(3, dtype=torch.bool)
    assert (error < 0.6 * scale).all(), error / scale  # better than the mean image
    assert (error < 0.9 * copied)[others].all(), error / copied  # all share their background


@pytest.mark.parametrize(
    ("words", "error"),
    [("anchor=mean", "anchor"), ("tokens=both", "tokens"), ("source_modalities=0", "source_modalities"),
     ("cutout=2", "cutout"), ("temperature=0", "temperature"), ("weight_invariance=-1", "weight_invariance")],
)  # fmt: skip
def test_wrong_options_are_named(words, error):
    name, value = words.split("=")
    kind = type(getattr(PUIROptions(), name))
    with pytest.raises(OptionError, match=error):
        PUIROptions(**{name: kind(value)})


def test_one_channel_is_refused_with_the_reason(tiny):
    with pytest.raises(UnsupportedConfigurationError, match=r"1 channel.*needs at least 2"):
        run_pretraining("puir", tiny.name, "3d_fullres", device="cpu", settings=["epochs=1", "iterations=1"])
    assert not (tiny.results / tiny.name / "pretraining/puir__nnUNetPlans__3d_fullres").exists()


def test_two_dimensions_are_refused(modalities):
    with pytest.raises(UnsupportedConfigurationError, match="3-D"):
        run_pretraining("puir", modalities.name, "2d", device="cpu")


def test_a_run_uses_cases_with_missing_channels(modalities, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    settings = ["epochs=1", "iterations=2", "workers=0", "batch_size=2", "prior=4", "queue=8", "grad_accum_steps=2"]
    path = run_pretraining("puir", modalities.name, "3d_fullres", device="cpu", settings=settings)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert len(manifest["cases"]) == 6
    checkpoint = load_checkpoint(path)
    assert checkpoint.metadata["channel_names"] == ["T1", "CT"]
    assert checkpoint.metadata["pretrained"] == ["encoder"]
    row = checkpoint.metadata["progress"]["history"][0]
    assert {
        "decomposition",
        "invariance",
        "equivariance",
        "contrast",
        "amplitude",
        "variation",
        "modality_share",
        "individual_share",
    } <= set(row)
    assert checkpoint.tensors["network.encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 1
    report = export_nnunet(path, tmp_path / "single.pth", "student", random_decoder=True)
    assert report.coverage == 1
