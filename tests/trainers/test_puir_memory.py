"""Memory of PUIRTrainer: the estimate, its comparison with the device, and the fallback after running out of memory."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_invariance.errors import DeviceMemoryError
from nnunet_invariance.networks.architectures.puir import gigabytes
from nnunet_invariance.networks.planned import Architecture
from tests.helpers.tiny_trainers import log_of, make_trainer, started

pytestmark = pytest.mark.usefixtures("results")

TRAINER = "PUIRTrainer_scratch_1epoch"


class Kept:
    """A tensor that an autograd graph keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Peak:
    """Peak number of bytes that autograd graphs keep; counts each storage once, and no weights of networks."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
        self.users: dict[int, int] = {}
        self.now = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor)

    def pack(self, tensor: torch.Tensor) -> Kept:
        kept, storage = Kept(tensor), tensor.untyped_storage()
        if (place := storage.data_ptr()) not in self.weights:
            self.count(place, storage.nbytes(), 1)
            weakref.finalize(kept, self.count, place, storage.nbytes(), -1)
        return kept

    def count(self, place: int, size: int, change: int) -> None:
        before = self.users.get(place, 0)
        self.users[place] = before + change
        self.now += size * (bool(before + change) - bool(before))
        self.peak = max(self.peak, self.now)


def test_the_memory_estimate_matches_what_a_step_keeps(modalities):
    trainer, batch = started(modalities, TRAINER, equivariance_probability=1.0, prior=4)
    ours = Peak(trainer.network, trainer.aux)
    with ours.hooks:
        trainer.train_step(batch)
    assert ours.now == 0
    planned = modalities.plans["configurations"]["3d_fullres"]["architecture"]
    network = Architecture.from_plans(planned, 2, 3).build()
    network.decoder.deep_supervision = True
    stock = Peak(network)
    with stock.hooks:
        trainer.loss(network(batch["data"][:, :2]), batch["target"]).backward()
    parts = (trainer.network.encoder, trainer.network.decoder)
    estimate = trainer.network.compute_conv_feature_map_size([32] * 3)
    estimate = estimate / sum(part.compute_conv_feature_map_size([32] * 3) for part in parts)
    assert estimate == pytest.approx(ours.peak / stock.peak, rel=0.1)


@pytest.mark.parametrize(("share", "recomputed"), [(1.01, False), (0.99, True)])
def test_activations_are_recomputed_if_the_estimate_exceeds_the_memory(modalities, monkeypatch, share, recomputed):
    trainer = make_trainer(modalities, TRAINER)
    trainer.initialize()
    assert not trainer.network.checkpointing
    needed = gigabytes(trainer.network.compute_conv_feature_map_size([32] * 3), trainer.batch_size)
    device = SimpleNamespace(total_memory=np.float64(share * needed * 1e9 / 0.9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device_: device)
    trainer.device = torch.device("cuda")
    trainer.fit_memory()
    assert trainer.network.checkpointing is recomputed  # no NumPy bool, which torch.compile would take for a tensor


@pytest.mark.integration
def test_a_compiled_step_has_no_graph_breaks(modalities, monkeypatch):
    """nnU-Net compiles on CUDA; this test uses the same tracing without code generation."""
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer, batch = started(modalities, TRAINER, prior=4, equivariance_probability=1.0)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    trainer.network = torch.compile(trainer.network, backend="eager")
    try:
        assert np.isfinite(trainer.train_step(batch)["total"])
        assert dict(counters["graph_break"]) == {}
        assert 0 < counters["stats"]["unique_graphs"] <= 2  # with the estimates for the losses, and without
    finally:
        torch._dynamo.reset()


def short_of_memory(trainer) -> None:
    forward = trainer.network.forward

    def short(*arguments):
        if not trainer.network.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments)

    trainer.network.forward = short


def test_out_of_memory_recomputes_activations_from_then_on(modalities):
    trainer, batch = started(modalities, TRAINER, prior=4)
    short_of_memory(trainer)
    assert all(np.isfinite(trainer.train_step(batch)["total"]) for _ in range(2))
    assert log_of(trainer).count("are recomputed") == 1


def test_out_of_memory_stops_with_a_remedy_if_memory_cannot_be_reduced(modalities):
    trainer, batch = started(modalities, TRAINER, prior=4, checkpointing="off")
    short_of_memory(trainer)
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory.*Remedy"):
        trainer.train_step(batch)
    assert 'Remedy: "checkpointing": "on"' in log_of(trainer)
