"""The probe that accompanies a pre-training."""

import pytest

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.pretraining.engine.loop import PretrainingStopped
from nnunet_invariance.probing import ProbeCurve, ProbeOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_anatomix import make
from tests.helpers.tiny_pretraining import assert_same, tensors

SETTINGS = ["epochs=3", "iterations=1", "workers=0", "batch_size=1", "head_width=16", "num_prototypes=16"]
SMALL = ProbeOptions(shots=(1,), draws=1, test_cases=2, random_networks=0, voxels_per_class=50)


class Interrupted(ProbeCurve):
    """A probe during which the run ends, in its third measurement."""

    calls = 0

    def measure(self, method):
        self.calls += 1
        if self.calls == 3:
            raise PretrainingStopped("test")
        return super().measure(method)


def test_a_run_with_the_probe_is_bit_identical_and_has_a_curve(tiny, results):
    def run(**given):
        return run_pretraining("alice", tiny.name, "3d_fullres", settings=SETTINGS, **given)

    plain = tensors(run())
    path = run(monitor=ProbeCurve(2, SMALL))
    assert_same(plain, tensors(path))
    rows = load_checkpoint(path).metadata["progress"]["history"]
    measured = [(row["epoch"], row["probe_dice"], row["probe_dice_teacher"]) for row in rows if "probe_dice" in row]
    assert [epoch for epoch, *_ in measured] == [0, 2, 3]
    assert all(0 <= dice <= 1 for _, *values in measured for dice in values)
    with pytest.raises(PretrainingStopped):  # in epoch 2
        run(monitor=Interrupted(1, SMALL))
    assert_same(plain, tensors(run(monitor=ProbeCurve(1, SMALL), resume=True)))


def test_a_network_of_another_number_of_channels_is_refused(tiny):
    planned = open_planned_dataset(tiny.name, "3d_fullres")
    planned.dataset_json["channel_names"] = {"0": "MR", "1": "CT"}
    with pytest.raises(UnsupportedConfigurationError, match="--probe: anatomix trains a network of 1 channel"):
        ProbeCurve(1).start(planned, make(), "cpu")


def test_a_network_without_stages_is_refused_before_the_run(tiny):
    method = make()
    del method.network.decoder.stages
    with pytest.raises(UnsupportedConfigurationError, match="PlainConvUNet has no encoder and decoder with stages"):
        ProbeCurve(1).start(open_planned_dataset(tiny.name, "3d_fullres"), method, "cpu")


def test_the_probe_needs_a_data_set(capsys):
    assert main(["pretrain", "anatomix", "--network", "plain4", "--out", "x", "--probe", "2"]) == 2
    assert "--probe 2: expected a whole number of epochs, for a run on a DATASET" in capsys.readouterr().err
