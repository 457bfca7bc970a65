"""Two processes (gloo) give the result of one process on the joined batch."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.weights.checkpoint import read_metadata
from tests.helpers.distributed_alice import AUTHORS_FORM, build, views
from tests.helpers.two_ranks import on_two_ranks, torchrun


def step_on_one_rank(rank, form):
    """Mean losses over the ranks, gradients, and the centers after a step with the rank's pair of Q1 Q2 K1 K2."""
    alice = build(**form)
    mine = {key: value[[rank, rank + 2]] for key, value in views().items()}
    parallel = DistributedDataParallel(alice, broadcast_buffers=False)  # it has to live until the backward pass
    output = parallel(mine, 0.5)
    sum(output.losses.values()).backward()
    alice.after_step(output, 0.5)
    losses = torch.stack([value.detach() for value in output.losses.values()])
    dist.all_reduce(losses)
    gradients = {name: p.grad for name, p in alice.named_parameters() if p.grad is not None}
    centers = [alice.heads.inter.center, alice.heads.intra.center]
    return {"losses": losses / 2, "gradients": gradients, "centers": centers}


@pytest.mark.parametrize("form", [AUTHORS_FORM, {"encoding": "sparse", "target_tokens": "decoder"}])
def test_loss_and_gradients_of_two_ranks_equal_one_rank_on_the_joined_batch(form):
    two, _ = on_two_ranks(step_on_one_rank, form)
    alice = build(**form)
    output = alice(views(), 0.5)
    sum(output.losses.values()).backward()
    alice.after_step(output, 0.5)
    one = {n: p.grad for n, p in alice.named_parameters() if p.grad is not None}
    assert torch.allclose(two["losses"], torch.stack([v.detach() for v in output.losses.values()]), rtol=1e-5)
    assert one.keys() == two["gradients"].keys()
    assert len(one) > 30
    for name, gradient in one.items():
        # a bias before an instance norm has no effect; what is left of its gradient is rounding
        assert torch.allclose(two["gradients"][name], gradient, rtol=1e-3, atol=1e-5), name
    for center, head in zip(two["centers"], (alice.heads.inter, alice.heads.intra), strict=True):
        assert torch.allclose(center, head.center, atol=1e-6)
        assert head.center.any() == (form is AUTHORS_FORM)


def test_ranks_wait_for_hours_for_the_first_one(monkeypatch):
    """The defaults of nccl and gloo, 10 and 30 minutes, are too short for preprocessing or mining of real data."""
    started = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: started.update(given, backend=backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: started.update(left=True))
    with distributed_context("cpu") as group:
        assert (group.rank, group.world_size) == (1, 2)
    assert started.keys() == {"backend", "timeout", "left"}
    assert started["timeout"] >= timedelta(days=1)


@pytest.mark.slow
def test_torchrun_pretrains_on_two_processes(tiny, tmp_path):
    words = f"-m nnunet_invariance pretrain alice {tiny.name} 3d_fullres -device cpu --epochs 1 --iterations 2"
    settings = ("--set", "workers=0", "head_width=64", "num_prototypes=64")
    torchrun(*words.split(), *settings, nnUNet_results=str(tmp_path))
    final = tmp_path / tiny.name / "pretraining" / "alice__nnUNetPlans__3d_fullres" / "checkpoint_final.safetensors"
    assert read_metadata(final)["finished"]
