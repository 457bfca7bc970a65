"""The public interface of the synthesis engine, and its precision under autocast."""

import subprocess
import sys

import pytest
import torch

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.errors import OptionError, TemplateError
from nnunet_invariance.synthesis import SynthesisEngine, SynthesisOptions, painting
from nnunet_invariance.synthesis.engine import SyntheticPairs


@pytest.fixture(scope="module")
def engine():
    return SynthesisEngine(SynthesisOptions(size=(32, 32, 32)))


def test_a_call_makes_pairs_that_can_be_unpacked(device):
    pairs = SynthesisEngine(SynthesisOptions(size=(32, 32, 32)), device=device)(n=2)
    labels, first, second = pairs
    assert labels is pairs.labels
    assert (first, second) == pairs.views
    assert labels.shape == first.shape == second.shape == (2, 1, 32, 32, 32)
    assert labels.device.type == first.device.type == device.type


def test_a_device_makes_the_labels_of_the_cpu(engine, device):
    elsewhere = SynthesisEngine(engine.options, device=device)
    found, expected = (one.batch([0, 1]).labels.cpu() for one in (elsewhere, engine))
    assert (found == expected).float().mean() > 0.999


@pytest.mark.integration
def test_size_and_seed_of_a_call(engine):
    assert engine(n=1, size=48).first.shape == (1, 1, 48, 48, 48)
    assert engine(n=1, size=(32, 48, 32)).labels.shape == (1, 1, 32, 48, 32)
    same = SynthesisEngine(SynthesisOptions(size=(48, 48, 48)))(n=1)
    assert torch.equal(engine(n=1, size=48).first, same.first)
    assert torch.equal(engine(n=1, seed=0).first, engine(n=1).first)
    assert not torch.equal(engine(n=1, seed=1).labels, engine(n=1).labels)
    assert torch.equal(engine(n=3).labels[2], engine.batch([2]).labels[0])
    assert engine._with(48, None) is engine._with((48, 48, 48), "cpu")  # its templates are made once


def test_wrong_arguments_are_errors(engine, tmp_path):
    with pytest.raises(OptionError, match="n is 0; expected at least 1"):
        engine(n=0)
    with pytest.raises(OptionError, match=r"'size' is \(50, 50, 50\).*The next that fit: \(64, 64, 64\)"):
        engine(size=50)
    with pytest.raises(TemplateError, match="No templates found"):
        SynthesisEngine(templates=tmp_path)
    with pytest.raises(OptionError, match=r"'gamma' is \(2.0, 1.0\); expected two numbers \(low, high\)"):
        SynthesisOptions(gamma=(2.0, 1.0))


@pytest.mark.integration
def test_it_needs_no_environment_variables_of_nnunet():
    """A fresh process without the three variables; nnU-Net prints a warning where something of it reads them."""
    code = "from nnunet_invariance.synthesis import SynthesisEngine; print(SynthesisEngine()(n=1, size=32).first.shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("torch.Size([1, 1, 32, 32, 32])")


def test_painting_copies_two_tables_to_the_device(engine, monkeypatch):
    copies = []
    monkeypatch.setattr(painting, "copy_to", lambda *args: copies.append(args) or copy_to(*args))
    engine.batch([0, 1])
    assert len(copies) == 2


def test_autocast_changes_nothing(engine):
    expected = engine(n=2)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = engine(n=2)
        fresh = SynthesisEngine(engine.options)(n=2)
    for made in (pairs, fresh):
        assert isinstance(made, SyntheticPairs)
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
