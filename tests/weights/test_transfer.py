"""Transfer into planned networks: the report and the network agree."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_invariance import weights
from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint
from nnunet_invariance.weights.transfer import check_method, default_branch, load_pretrained
from tests.helpers.small_checkpoints import NETWORKS, architecture, build, checkpoint, tensors, write

ENCODER_PROJECTION = {
    "PlainConvUNet": "encoder.stages.0.0.convs.0.conv.weight",
    "ResidualEncoderUNet": "encoder.stem.convs.0.conv.weight",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint_final.safetensors"


def snapshot(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in unique_tensors(network).items()}


def unchanged(network: nn.Module, before: dict[str, torch.Tensor], but: set[str] = frozenset()) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in unique_tensors(network).items() if name not in but)


def names(entries) -> set[str]:
    return {entry.name for entry in entries}


@pytest.mark.parametrize(
    ("steps", "sections", "expected"),
    [
        (4999, ("network", "teacher"), "student"),
        (5000, ("network", "teacher"), "teacher"),
        (0, ("network", "teacher"), "teacher"),  # an imported file whose length is not known
        (4999, ("teacher",), "teacher"),
        (5000, ("network",), "student"),
    ],
)
def test_the_teacher_of_a_short_run_is_not_the_default(
    path: Path, steps: int, sections: tuple[str, ...], expected: str
) -> None:
    tensors = {f"{section}.weight": torch.zeros(1) for section in sections}
    assert default_branch(Checkpoint(path, {"total_steps": steps}, tensors)) == expected


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize("transfer", ["encoder", "encoder+decoder"])
@pytest.mark.parametrize(("branch", "section"), [("teacher", "teacher"), ("student", "network")])
def test_the_requested_tensors_are_copied_and_the_others_unchanged(
    path: Path, network_class: str, transfer: str, branch: str, section: str
) -> None:
    file = checkpoint(path, architecture(network_class, classes=2))
    network = build(architecture(network_class, classes=5), seed=9)
    before = snapshot(network)
    report = load_pretrained(network, file, transfer=transfer, branch=branch)

    prefixes = ("encoder.", "decoder.") if transfer == "encoder+decoder" else ("encoder.",)
    asked = {n for n in before if n.startswith(prefixes) and "seg_layers" not in n}
    assert names(report.matched) == asked
    for name in asked:
        assert torch.equal(unique_tensors(network)[name], file.section(section)[name]), name
        assert not torch.equal(before[name], file.section(section)[name]), name
    assert unchanged(network, before, but=asked)
    assert not report.adapted + report.skipped + report.missing
    assert report.coverage == 1
    assert report.decoder == ("from the file" if transfer == "encoder+decoder" else "random")


@pytest.mark.parametrize("network_class", NETWORKS)
def test_aliases_of_nnunet_show_the_new_values(path: Path, network_class: str) -> None:
    """nnU-Net's state_dict names every convolution several times; all of them must be the file's."""
    file = checkpoint(path, architecture(network_class))
    network = build(architecture(network_class), seed=9)
    load_pretrained(network, file)
    state = network.state_dict()
    copied = {tensor.data_ptr() for name, tensor in unique_tensors(network).items() if name.startswith("encoder.")}
    aliases = [name for name in state if name.startswith(("encoder.", "decoder.encoder."))]
    assert len(aliases) > 2 * len(copied)
    assert {state[name].data_ptr() for name in aliases} == copied


@pytest.mark.parametrize("network_class", NETWORKS)
def test_the_loaded_encoder_computes_the_same_as_the_pretrained_one(path: Path, network_class: str) -> None:
    planned = architecture(network_class)
    file = checkpoint(path, planned)
    network = build(planned, seed=9)
    load_pretrained(network, file)
    image = torch.randn(1, 1, 8, 8, 8)
    for ours, theirs in zip(network.encoder(image), build(planned, seed=2).encoder(image), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize(("found", "wanted"), [(1, 4), (4, 1), (2, 3)])
def test_other_channel_counts_are_adapted(path: Path, network_class: str, found: int, wanted: int) -> None:
    """Law: an image of equal channels gives the same features under the file's network and under ours."""
    branch = architecture(network_class, channels=found)
    file = checkpoint(path, branch)
    network = build(architecture(network_class, channels=wanted), seed=9)
    report = load_pretrained(network, file)
    assert names(report.adapted) == {ENCODER_PROJECTION[network_class]}
    assert report.adapted[0].rule == f"input channels {found} -> {wanted}"
    assert report.coverage == 1
    assert not report.skipped + report.missing

    image = torch.randn(1, 1, 8, 8, 8)
    theirs = build(branch, seed=2).encoder(image.expand(-1, found, -1, -1, -1))
    ours = network.encoder(image.expand(-1, wanted, -1, -1, -1))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [((4, 8, 16), (4, 8, 16, 16)), ((4, 8, 16, 16), (4, 8, 16)), ((4, 8, 16), (4, 8, 24)), ((4, 8, 16), (6, 8, 16))],
    ids=["deeper network", "deeper file", "wider last stage", "wider first stage"],
)
@pytest.mark.parametrize("network_class", NETWORKS)
def test_every_tensor_is_accounted_for_once(path: Path, network_class: str, found: tuple, wanted: tuple) -> None:
    """A slow count over the shapes of file and network gives the same lists and coverage."""
    file = checkpoint(path, architecture(network_class, features=found))
    network = build(architecture(network_class, features=wanted), seed=9)
    before = snapshot(network)
    theirs = {n: t for n, t in file.section("teacher").items() if n.startswith("encoder.")}
    ours = {n: t for n, t in before.items() if n.startswith("encoder.")}
    fits = {n for n in ours if n in theirs and ours[n].shape == theirs[n].shape}
    share = sum(ours[n].numel() for n in fits) / sum(t.numel() for t in ours.values())
    stages = {n: 0 if "stem" in n else int(n.split(".")[2]) for n in ours}
    complete = [all(n in fits for n in ours if stages[n] == stage) for stage in range(len(wanted))]

    report = load_pretrained(network, file, min_coverage=0.0)
    assert names(report.matched) == fits
    assert names(report.missing) == ours.keys() - fits
    assert names(report.skipped) == theirs.keys() - fits
    assert report.parameter_coverage == pytest.approx(share)
    assert report.coverage == pytest.approx(sum(complete) / len(wanted))
    assert [stage.is_complete for stage in report.encoder_stages] == complete
    assert unchanged(network, before, but=fits)
    assert all(torch.equal(unique_tensors(network)[n], theirs[n]) for n in fits)


def test_too_little_coverage_is_an_error_and_changes_nothing(path: Path) -> None:
    file = checkpoint(path, architecture(features=(4, 8, 16)))
    network = build(architecture(features=(4, 8, 16, 16)), seed=9)
    before = snapshot(network)
    with pytest.raises(WeightsIncompatibleError) as error:
        load_pretrained(network, file)
    message = str(error.value)
    for part in (
        str(path),
        "fills 3 of 4 encoder stages (75.00%",
        "min_coverage is 100.00%",
        "stage 3: random",
        "missing: encoder.stages.3.0.convs.0.conv.weight",
        "not in the file",
        '"min_coverage"',
    ):
        assert part in message
    assert "weights plan" in message
    assert unchanged(network, before)

    covered = load_pretrained(network, file, min_coverage=0.0).coverage
    assert covered == 0.75
    again = build(architecture(features=(4, 8, 16, 16)), seed=9)
    load_pretrained(again, file, min_coverage=covered)  # the bound itself is enough
    with pytest.raises(WeightsIncompatibleError):
        load_pretrained(again, file, min_coverage=covered + 1e-6)


def test_a_key_missing_from_the_file_is_missing_in_the_report(path: Path) -> None:
    whole = checkpoint(path)
    name = "encoder.stages.1.0.convs.0.norm.weight"
    less = {key: tensor for key, tensor in whole.tensors.items() if key != f"teacher.{name}"}
    file = dataclasses.replace(whole, tensors=less)
    with pytest.raises(WeightsIncompatibleError, match=name):
        load_pretrained(build(architecture(), seed=9), file)
    assert names(load_pretrained(build(architecture(), seed=9), file, min_coverage=0.5).missing) == {name}


def test_a_decoder_that_was_not_pretrained_is_missing(path: Path) -> None:
    file = checkpoint(path, pretrained=["encoder"])
    network = build(architecture(), seed=9)
    before = snapshot(network)
    report = load_pretrained(network, file, transfer="encoder+decoder")
    decoder = {n for n in before if n.startswith("decoder.") and "seg_layers" not in n}
    assert names(report.missing) == names(report.skipped) == decoder
    assert {entry.rule for entry in report.missing} == {"decoder was not pre-trained"}
    assert report.coverage == 1
    assert report.decoder == "random"
    assert unchanged(network, before, but=names(report.matched))


def test_other_architectures_and_dimensions_are_refused(path: Path) -> None:
    plain = checkpoint(path, architecture("PlainConvUNet"))
    flat = checkpoint(path.with_name("flat.safetensors"), architecture(dimensions=2))
    for file, planned, found, wanted in (
        (plain, architecture("ResidualEncoderUNet"), "3-D PlainConvUNet", "3-D ResidualEncoderUNet"),
        (flat, architecture(), "2-D PlainConvUNet", "3-D PlainConvUNet"),
    ):
        network = build(planned, seed=9)
        before = snapshot(network)
        with pytest.raises(WeightsIncompatibleError, match=f"{found}, but the plans ask for a {wanted}"):
            load_pretrained(network, file, min_coverage=0.0)
        assert unchanged(network, before)


def test_two_dimensional_weights_fit_two_dimensional_plans(path: Path) -> None:
    file = checkpoint(path, architecture(dimensions=2))
    assert load_pretrained(build(architecture(dimensions=2), seed=9), file).coverage == 1


def test_weights_must_be_of_the_method_of_the_trainer(path: Path) -> None:
    file = checkpoint(path, method="puir")
    check_method(file, "puir")
    with pytest.raises(
        WeightsIncompatibleError,
        match=r"'puir', but this trainer needs 'alice'.*alice`, or .*PUIRTrainer",
    ):
        check_method(file, "alice")


def test_the_error_of_a_file_without_teacher_names_the_option(path: Path) -> None:
    file = checkpoint(path, teacher=False)
    with pytest.raises(WeightsIncompatibleError, match=r'has no teacher.*"branch": "student"'):
        load_pretrained(build(architecture(), seed=9), file, branch="teacher")
    assert load_pretrained(build(architecture(), seed=9), file, branch="student").coverage == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(path: Path, value: float) -> None:
    file = checkpoint(path)
    bad = "teacher.encoder.stages.1.0.convs.0.conv.bias"
    file.tensors[bad][2] = value
    network = build(architecture(), seed=9)
    before = snapshot(network)
    with pytest.raises(
        CheckpointCorruptError, match=r"NaN or infinite values in 1 .*stages\.1\.0\.convs\.0\.conv\.bias"
    ):
        load_pretrained(network, file)
    assert unchanged(network, before)
    assert load_pretrained(network, file, branch="student").coverage == 1


def test_shared_memory_in_the_network_is_found_after_copying(path: Path) -> None:
    """Two names, one memory: whichever is copied last wins, and the report would be wrong about the other."""
    file = checkpoint(path)
    network = build(architecture(), seed=9)
    convolution = network.encoder.stages[0][0].convs[0]
    convolution.norm.weight.data = convolution.norm.bias.data
    with pytest.raises(WeightsIncompatibleError, match="shares its memory"):
        load_pretrained(network, file)


def test_half_precision_networks_hold_the_rounded_values(path: Path) -> None:
    file = checkpoint(path)
    network = build(architecture(), seed=9).half()
    load_pretrained(network, file)
    name = "encoder.stages.2.0.convs.1.conv.weight"
    assert torch.equal(unique_tensors(network)[name], file.section("teacher")[name].half())


def test_the_report_has_builtin_types_and_readable_text(path: Path) -> None:
    file = checkpoint(path, architecture(channels=4, features=(4, 8, 16, 16)))
    report = load_pretrained(build(architecture(channels=1, features=(4, 8, 24)), seed=9), file, min_coverage=0.1)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["sha256"] == file.metadata["sha256"]
    assert plain["coverage"] == report.coverage
    assert sum(e["parameters"] for e in plain["matched"]) == sum(e.parameters for e in report.matched)
    text = report.to_text()
    for part in (
        str(path),
        "teacher",
        "alice",
        "input channels 4 -> 1",
        f"{report.coverage:.2%}",
        f"{report.parameter_coverage:.2%}",
        "decoder: random",
    ):
        assert part in text
    for kind in ("matched", "adapted", "skipped", "missing"):
        line = next(line for line in text.splitlines() if line.split()[0] == kind)
        assert int(line.split()[1]) == len(getattr(report, kind))
    assert "... and" in text
    assert len(text.splitlines()) < 40


def test_one_section_is_enough(path: Path) -> None:
    write(path)
    file: Checkpoint = load_checkpoint(path, sections=["teacher"])
    assert load_pretrained(build(architecture(), seed=9), file).coverage == 1
    assert not any(name.startswith("network.") for name in file.tensors)
    assert any(name.startswith("network.") for name in tensors(architecture()))


def test_a_notebook_needs_a_network_and_a_path(path: Path) -> None:
    write(path)
    network = build(architecture(), seed=9)
    report = weights.load_pretrained(network, path)
    assert (report.branch, report.coverage) == ("teacher", 1)
    write(path, teacher=False)
    assert weights.load_pretrained(network, str(path)).branch == "student"


def test_public_names_are_importable_and_the_package_imports_no_torch() -> None:
    code = "import sys, nnunet_invariance.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(callable(getattr(weights, name)) for name in weights.__all__)
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = weights.other
