"""The gate for shipped weights: what it measures, which conditions it checks, and that it continues a run."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.shipped_weights import gate
from benchmarks.studies.few_labels.tasks import Task
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.networks.stock import plain_conv_unet, residual_encoder_unet
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.weights.checkpoint import save_checkpoint
from tests.helpers.small_checkpoints import build, metadata


def probed(own, best):
    cell = {"file": {"mean": own, "low": own - 0.1, "high": own + 0.1}, "random": [best - 0.1, best]}
    return {"test_cases": 4, "draws": 2, "shots": {"1": cell, "5": cell}}


def trained(low):
    cell = {"mean": low + 0.02, "low": low, "high": low + 0.04, "draws": 3, "cases": 6}
    return {"shots": {shots: {gate.TWIN: cell, gate.PLAIN: cell} for shots in ("1", "5")}}


@pytest.fixture
def file(tiny, tmp_path):
    """Weights for the network of the tiny plans."""
    planned = Architecture.from_plans(tiny.plans["configurations"]["3d_fullres"]["architecture"], 1, 1)
    tensors = {f"network.{name}": value.detach() for name, value in unique_tensors(build(planned, 3)).items()}
    path = tmp_path / "some_weights.safetensors"
    save_checkpoint(path, tensors, metadata(planned, method="anatomix"))
    return path


def test_a_residual_file_is_compared_in_the_residual_network_of_the_planned_depth():
    planned = gate.as_planned_for(residual_encoder_unet((4, 8), (1, 3)), plain_conv_unet((4, 8, 16)))
    network = Architecture.from_plans(planned, 1, 2).build()
    assert [len(stage.blocks) for stage in network.encoder.stages] == [1, 3, 4]


def test_the_probe_measures_the_file_and_random_networks(tiny, results, file, monkeypatch):
    monkeypatch.setattr(gate, "SHOTS", (1,))
    monkeypatch.setattr(gate, "RANDOM_NETWORKS", 2)
    args = gate.parse([str(file), "--data", "none", "--work", "none", "--draws", "1", "--test-cases", "1"])
    planned = open_planned_dataset(tiny.name, "3d_fullres")
    found = gate.run_probe(Task(tiny.name, 2, planned.patch_size), planned, args)
    assert (found["test_cases"], found["draws"]) == (1, 1)
    for cell in found["shots"].values():
        assert len(set(cell["random"])) == 2
        assert 0 <= cell["file"]["low"] <= cell["file"]["mean"] <= cell["file"]["high"] <= 1


def test_a_call_continues_and_another_file_of_the_same_name_starts_anew(file, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(gate, "prepare", lambda task, args: None)
    monkeypatch.setitem(gate.RUN, "probe", lambda task, *rest: calls.append(task.dataset) or probed(0.7, 0.4))
    words = [str(file), "--data", "none", "--work", str(tmp_path), "--parts", "probe", "--sets"]
    monkeypatch.setattr(gate, "use_tree", lambda work: None)
    assert gate.main([*words, "hippocampus"]) == 0
    assert gate.main([*words, "hippocampus", "acdc"]) == 0
    assert calls == ["Dataset004_Hippocampus", "Dataset911_ACDC"]
    page = (tmp_path / "gate" / "some_weights.md").read_text()
    assert "| acdc | 1 | 0.700 [0.600, 0.800] | 0.350 (0.400 of 2) | 2 x 4 |" in page
    assert "probe, left_atrium, 1 case: above the best random network: not run" in page
    file.write_bytes(file.read_bytes() + b" ")
    assert gate.main([*words, "acdc"]) == 0
    assert calls[2:] == ["Dataset911_ACDC"]
    monkeypatch.setitem(gate.RUN, "probe", lambda *rest: probed(0.4, 0.4))
    assert gate.main([*words, "openkbp"]) == 1
    assert "probe, openkbp, 5 cases: above the best random network: NOT MET" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lows", "expected"),
    [((0.01, 0.02), True), ((0.01, -0.01), None), ((0.0, 0.0, 0.0, 0.1), False), ((-0.1, 0.1, -0.1, 0.1), True)],
)
def test_a_gain_on_two_sets_is_needed(lows, expected):
    few_shot = {name: trained(low) for name, low in zip(gate.SETS, lows, strict=False)}
    found = gate.conditions({"probe": {}, "few-shot": few_shot})
    assert found.pop("few-shot: better than the twin and plain nnU-Net at 1 and 5 cases on 2 sets") is expected
    assert set(found.values()) == {None}
    assert gate.table({"probe": {}, "few-shot": few_shot}).count("not run") == 8 + 2 * (4 - len(lows))


@pytest.mark.integration
def test_differences_are_those_of_the_scores():
    random = np.random.default_rng(0)
    means = {gate.PRETRAINED: 0.8, gate.TWIN: 0.7, gate.PLAIN: 0.75}
    rows = [
        {"condition": condition, "draw": draw, "arm": arm, "case": f"c{case}", "label": "organ",
         "dice": mean + random.normal(0, 0.002)}
        for condition in ("1 shot", "5 shots") for draw in (0, 1, 2) for arm, mean in means.items() for case in range(5)
    ]  # fmt: skip
    found = gate.few_shot_record(pd.DataFrame(rows))["shots"]
    assert set(found) == {"1", "5"}
    for cells in found.values():
        assert cells[gate.TWIN]["mean"] == pytest.approx(0.1, abs=0.02)
        assert cells[gate.PLAIN]["low"] > 0
        assert (cells[gate.PLAIN]["draws"], cells[gate.PLAIN]["cases"]) == (3, 5)
