"""`translate train|predict|evaluate`: what is learned, undone, written and scored."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    RescaleTo01Normalization,
    ZScoreNormalization,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    ImagesFolderError,
    OptionError,
    OutputError,
    UnsupportedConfigurationError,
    WeightsNotFoundError,
)
from nnunet_invariance.modality_translation.checkerboard import nyquist_peak
from nnunet_invariance.modality_translation.evaluate import PairScore, headline, summarise
from nnunet_invariance.modality_translation.intensities import Intensities, affine_of, read_intensities
from nnunet_invariance.modality_translation.metrics import plain_scores, release_scores
from nnunet_invariance.modality_translation.predict import translate_folder
from nnunet_invariance.modality_translation.translator import ModalityTranslator, load_translator
from nnunet_invariance.networks.architectures.smooth_upsampling import InterpolatedConv
from nnunet_invariance.nnunet.missing_channels import fill_missing_channels, find_cases
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.puir import PUIR, PUIROptions
from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslation, PUIRTranslationOptions
from tests.helpers.small_checkpoints import architecture
from tests.helpers.three_tissues import PATCH, batch, individuals
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_modalities import DIFFERENT, write_apart, write_tests

PLANS = "TransferTestPlans"


def transfer(**options) -> PUIRTranslation:
    torch.manual_seed(0)
    planned = architecture(channels=3, classes=3, features=(8, 16, 16))
    setup = Setup(planned, PATCH, (1.0, 1.0, 1.0), 2, False, (), ("A", "B", "C"))
    return PUIRTranslation(setup, PUIRTranslationOptions(prior=8, queue=6, **options))


# --- the method


def test_every_trained_parameter_has_a_gradient_and_a_missing_modality_changes_nothing():
    method, image = transfer(), individuals(3, 0)
    image[0, 2] = 0
    other = image.clone()
    other[0, 2] = 9.0
    losses = []
    for x in (image, other):
        output = method(method.make_views(batch(x), torch.Generator().manual_seed(0)), 0.0)
        losses.append(output.losses)
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert (
        set(losses[0])
        == set(method.loss_weights)
        == {"decomposition", "invariance", "equivariance", "contrast", "translation"}
    )
    sum(method.loss_weights[name] * value for name, value in losses[0].items()).backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any(name.startswith("network.decoder.") for name, p in method.named_parameters() if p.requires_grad)


def test_single_sources_see_nothing_of_the_others():
    method, image = transfer(weight_contrast=0.0), individuals(2, 0)
    views = method.make_views(batch(image), torch.Generator().manual_seed(0))
    views["sources"], views["subset"] = torch.zeros(2, 1, dtype=torch.long), torch.tensor([[True, False, False]] * 2)
    first = method._translation(views)
    views["second"] = torch.cat((views["second"][:, :1], 5 * views["second"][:, 1:] + 1), 1)
    assert torch.equal(method._translation(views), first)


@pytest.mark.slow
def test_a_static_mapping_is_learned_for_individuals_that_were_never_seen():
    method = transfer(weight_contrast=0.0, weight_equivariance=0.0, cutout=0.0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(150):
        views = method.make_views(batch(individuals(4, step)), torch.Generator().manual_seed(step))
        losses = method(views, 0.0).losses
        optimizer.zero_grad()
        sum(method.loss_weights[name] * value for name, value in losses.items()).backward()
        optimizer.step()
    held_out = individuals(6, 10_000)
    method.eval()
    ratios = []
    for source in range(3):
        present = torch.zeros(6, 3, dtype=torch.bool)
        present[:, source] = True
        with torch.no_grad():
            drawn = method.network(held_out, present)
        others = [c for c in range(3) if c != source]
        error = (drawn - held_out)[:, others].square().mean()
        copied = (held_out[:, source : source + 1] - held_out)[:, others].square().mean()
        ratios.append((error / copied).item())
    assert max(ratios) < 0.9, ratios


# --- intensities


@pytest.mark.parametrize("kind", [ZScoreNormalization, CTNormalization, RescaleTo01Normalization])
def test_normalisation_is_undone(kind):
    image = np.random.default_rng(0).normal(40, 12, (6, 7, 8)).astype(np.float32)
    properties = {"mean": 35.0, "std": 9.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}
    normalised = kind(False, properties).run(image.copy())
    scale, offset = affine_of(kind.__name__, image, properties)
    assert normalised * scale + offset == pytest.approx(image, abs=1e-3)
    with pytest.raises(UnsupportedConfigurationError, match="OtherNormalization cannot be undone"):
        affine_of("OtherNormalization", image, properties)


# --- metrics


def test_metrics_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    real = np.where(rng.random((9, 10, 11)) < 0.4, 0.0, rng.normal(100, 20, (9, 10, 11)))
    drawn = real + rng.normal(0, 5, real.shape)
    psnr, nmse, ssim = plain_scores(real, drawn)
    squared = np.mean((real - drawn) ** 2)
    assert psnr == pytest.approx(10 * np.log10((real.max() - real.min()) ** 2 / squared))
    assert nmse == pytest.approx(((real - drawn) ** 2).sum() / (real**2).sum())
    assert 0 < ssim < 1
    z, other = ((x - x.mean()) / x.std() for x in (real, drawn))
    front = z >= -0.35
    assert 0 < front.mean() < 1
    error = np.where(front, z - other, 0)
    span = max(np.ptp(z), np.ptp(np.where(front, other, z)))
    psnr, nmse, ssim = release_scores(real, drawn)
    assert nmse == pytest.approx(np.mean(error**2))
    assert psnr == pytest.approx(10 * np.log10(span**2 / np.mean(error**2)))
    assert release_scores(real, 3 * drawn + 7) == pytest.approx((psnr, nmse, ssim))  # scale and offset play no part
    assert plain_scores(real, real) == (np.inf, 0, 1)


@pytest.mark.parametrize("slices", [1, 2])
def test_volumes_too_thin_for_a_window_have_no_similarity(slices):
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(size=(2, slices, 10, 11))
    for psnr, nmse, ssim in (plain_scores(real, drawn), release_scores(real, drawn)):
        assert np.isnan(ssim)
        assert np.isfinite([psnr, nmse]).all()


def test_pairs_are_summarised_one_by_one():
    rows = [PairScore("A", t, c, *[v] * 7) for t in "BC" for c, v in (("x", 1.0), ("y", 3.0))]
    each = ["2.0 (1.0)", *["2.000 (1.000)"] * 2]
    assert summarise(rows) == [("A", t, "2", *each, *each, "2.000 (1.000)") for t in "BC"]


def test_the_verdict_names_the_pairs_with_the_smallest_and_the_largest_error():
    errors = {"B": (0.2, 0.4), "C": (0.6, 0.8), "D": (0.1, 0.2)}
    rows = [PairScore("A", t, c, 9.0, e, *[0.5] * 5) for t, es in errors.items() for c, e in zip("xy", es, strict=True)]
    said = headline(rows)
    assert said.startswith("A to D has the smallest error: NMSE 0.150")
    assert said.endswith("A to C has the largest: 0.700.")
    assert headline(rows[:2]).endswith("a blank image has 1.")


def test_the_peak_at_the_nyquist_frequency_is_that_of_the_fourier_transform():
    rng = np.random.default_rng(0)
    noise, sign = rng.normal(size=(3, 40, 33)), (-1.0) ** np.arange(40)[:, None]
    flat = noise[:, :, 0] - noise[:, :, 0].mean(1, keepdims=True)
    flat *= 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(40) / 39)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(14, 21), np.arange(40)) / 40)
    energy = (np.abs(flat @ waves.T) ** 2).sum(0)
    assert nyquist_peak(noise[:, :, 0], [1]) == pytest.approx(energy[-1] / energy[:-1].mean())
    assert 0.5 < nyquist_peak(noise) < 2
    assert nyquist_peak(noise + 2 * sign) > 10
    assert nyquist_peak(noise + 2 * sign, [2]) == pytest.approx(nyquist_peak(noise, [2]), rel=0.5)
    assert np.isnan(nyquist_peak(noise[:, :20, :20]))
    assert np.isnan(nyquist_peak(np.ones((3, 40, 33))))


def smooth_image(size: int) -> torch.Tensor:
    """Three smooth modalities (1, 3, size, size, size), without energy at the Nyquist frequency."""
    g = torch.linspace(0, torch.pi, size)
    first = torch.sin(g[:, None, None]) * torch.sin(2 * g[:, None]) * torch.sin(g) + 0.5 * g
    return torch.stack((first, first.flip(0) ** 2, first.abs().sqrt()))[None]


def test_the_decoder_of_the_translation_draws_no_checkerboard():
    """Unlike nnU-Net's, whose transposed convolutions have weights of their own for even and odd voxels."""
    method, image = transfer(weight_contrast=0.0), smooth_image(32)
    stock = PUIR(method.setup, PUIROptions(prior=8, queue=6))
    with torch.no_grad():
        ours, theirs = (nyquist_peak(network(image).numpy(), (2, 3, 4)) for network in (method.network, stock.network))
    assert ours < 2 < 6 < theirs


def test_upsampling_is_a_convolution_after_linear_interpolation():
    layer = InterpolatedConv(torch.nn.ConvTranspose3d(3, 2, (1, 2, 2), (1, 2, 2))).double()
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    larger = torch.nn.functional.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="trilinear")
    torch.testing.assert_close(layer(x), layer.conv(larger))
    assert layer(x).shape == (2, 2, 3, 8, 10)


# --- prediction


class Copy(torch.nn.Module):
    """Every modality is the sum of those that are present."""

    def forward(self, x, present):
        return torch.where(present[..., None, None, None], x, 0).sum(1, keepdim=True).expand_as(x)


@pytest.fixture
def model(modalities) -> ModalityTranslator:
    planned = open_planned_dataset(modalities.name, "3d_fullres")
    scales = [Intensities("T1", "ZScoreNormalization", 10.0, 100.0, False), Intensities("CT", "CT", 1.0, 0.0, False)]
    return ModalityTranslator(planned, Copy(), scales, torch.device("cpu"))


@pytest.fixture
def images(modalities, tmp_path):
    """Two cases that lack T1, off centre and turned; one is smaller than the patch."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a", (40, 36, 45)), ("b", (20, 34, 40))):
        image = sitk.GetImageFromArray(rng.normal(50, 40, shape).astype(np.float32))
        image.SetOrigin((3.0, -4.0, 5.0))
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
        sitk.WriteImage(image, str(folder / f"{name}_0001.nii.gz"))
    return folder


def test_what_is_written_has_the_grid_of_the_case_and_the_scale_of_the_target(model, images, tmp_path):
    assert translate_folder(model, images, tmp_path / "out") == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    properties = model.planned.plans.foreground_intensity_properties_per_channel["1"]
    for name in "ab":
        source = sitk.ReadImage(str(images / f"{name}_0001.nii.gz"))
        written = sitk.ReadImage(str(tmp_path / "out" / f"{name}_0000.nii.gz"))
        for fact in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(written, fact)() == pytest.approx(getattr(source, fact)())
        raw = np.clip(sitk.GetArrayFromImage(source), properties["percentile_00_5"], properties["percentile_99_5"])
        wanted = (raw - properties["mean"]) / properties["std"] * 10 + 100
        assert sitk.GetArrayFromImage(written) == pytest.approx(wanted, abs=1e-2)
    translate_folder(model, images, tmp_path / "kept", ["CT"], ["T1"], keep=True)
    assert set(find_cases(tmp_path / "kept", ".nii.gz", ["T1", "CT"])["a"]) == {0, 1}
    assert (tmp_path / "kept" / "a_0001.nii.gz").read_bytes() == (images / "a_0001.nii.gz").read_bytes()


def test_an_empty_slot_is_no_image(model, tmp_path):
    write_tests(tmp_path / "in")
    fill_missing_channels(tmp_path / "in", tmp_path / "full", "779")
    assert translate_folder(model, tmp_path / "full", tmp_path / "out") == 3
    drawn = ["no_t1_0000.nii.gz", "small_0001.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == drawn
    with pytest.raises(ImagesFolderError, match=r"Case no_t1 in .* has no image of T1 \(a constant image counts"):
        translate_folder(model, tmp_path / "full", tmp_path / "from_t1", ["T1"])
    assert not (tmp_path / "from_t1").exists()
    translate_folder(model, tmp_path / "full", tmp_path / "kept", keep=True)
    images = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (tmp_path / "kept").iterdir()]
    assert len(images) == 6
    assert all(np.ptp(image) > 0 for image in images)


def test_outside_the_crop_is_what_the_modality_has_there(modalities, tmp_path):
    planned = open_planned_dataset(modalities.name, "3d_fullres")
    scales = [Intensities("T1", "ZScoreNormalization", 1.0, 0.0, False), Intensities("CT", "CT", 1.0, 0.0, False, -9.0)]
    image = np.zeros((36, 36, 36), np.float32)
    image[4:30, 3:33, 2:36] = np.random.default_rng(0).normal(50, 10, (26, 30, 34))
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "a_0000.nii.gz"))
    t1, ct = ModalityTranslator(planned, Copy(), scales, torch.device("cpu")).predict({0: tmp_path / "a_0000.nii.gz"})
    assert (ct[image == 0] == -9).all()
    assert (t1[image == 0] == 0).all()
    assert np.array_equal(ct[image != 0], t1[image != 0])


def test_transposed_plans_change_nothing(model, images):
    turned = {**model.planned.plans.plans, "transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
    plans = PlansManager(turned)
    planned = replace(model.planned, plans=plans, configuration=plans.get_configuration("3d_fullres"))
    files = {1: images / "a_0001.nii.gz"}
    assert replace(model, planned=planned).predict(files) == pytest.approx(model.predict(files), abs=1e-3)


def test_what_cannot_be_predicted_is_refused_and_leaves_nothing(model, images, tmp_path):
    with pytest.raises(OptionError, match="PET: no such channel; the dataset has T1, CT"):
        translate_folder(model, images, tmp_path / "out", ["PET"])
    with pytest.raises(ImagesFolderError, match=r"Case a in .* has no image of T1"):
        translate_folder(model, images, tmp_path / "out", ["T1"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="is not empty"):
        translate_folder(model, images, images)
    with pytest.raises(WeightsNotFoundError, match="translate train Dataset779_Modalities 3d_fullres -p nnUNetPlans"):
        load_translator(model.planned, device="cpu")


# --- the whole


def test_train_from_a_pretraining_predict_and_evaluate(modalities, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (modalities.preprocessed / modalities.name / f"{PLANS}.json").write_text(
        json.dumps(cut_down(modalities.plans, PLANS))
    )
    where = ["779", "3d_fullres", "-p", PLANS, "-device", "cpu"]
    short = ["--epochs", "1", "--iterations", "2", "--set", "workers=0", "prior=4", "batch_size=1"]
    assert main(["translate", "train", *where, *short]) == 2
    assert "Run `nnunet-invariance pretrain puir`" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    assert main(["pretrain", "puir", *where, *short]) == 0
    assert main(["translate", "train", *where, *short]) == 0
    folder = tmp_path / "results" / modalities.name / "pretraining" / f"puir_translation__{PLANS}__3d_fullres"
    assert "matched" in (folder / "log.txt").read_text()
    ct = read_intensities(folder)[1]
    properties = modalities.plans["foreground_intensity_properties_per_channel"]["1"]
    assert (ct.channel, ct.scale, ct.offset) == ("CT", properties["std"], properties["mean"])
    images = modalities.raw / modalities.name / "imagesTr"
    capsys.readouterr()
    assert main(["translate", "evaluate", *where, "-i", str(images), "-o", str(tmp_path / "scores")]) == 0
    rows = list(csv.DictReader((tmp_path / "scores" / "scores.csv").open()))
    pairs = {(row["source"], row["target"], row["case"]) for row in rows}
    complete = ("case_000", "case_001", "case_004")  # of the others one modality is a constant
    assert pairs == {(s, t, c) for s, t in (("T1", "CT"), ("CT", "T1")) for c in complete}
    page = (tmp_path / "scores" / "report.html").read_text()
    assert "was trained on 6 of these cases" in page
    write_apart(tmp_path / "apart")
    for step in ("predict", "evaluate"):
        assert main(["translate", step, *where, "-i", str(tmp_path / "apart"), "-o", str(tmp_path / step)]) == 2
        assert re.search(DIFFERENT, capsys.readouterr().err)
        assert not (tmp_path / step).exists()


def test_pretraining_options_reach_the_translation_and_wrong_ones_are_named():
    assert issubclass(PUIRTranslationOptions, PUIROptions)
    assert issubclass(PUIRTranslation, PUIR)
    with pytest.raises(OptionError, match=r"weight_translation' is 0; expected a number in \(0"):
        PUIRTranslationOptions(weight_translation=0)
