"""The two-view step on two ranks, with gloo on the CPU in place of nccl."""

import copy
import datetime
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.tiny_trainers import assert_same, make_trainer, values

RANKS = 2


def rank_main(rank: int, tiny, folder: Path) -> None:
    """Run one rank: save the averaged gradients, those of its own samples, and the weights after an epoch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=120),
    )
    # nnU-Net supports DDP on CUDA only; everything else is as on two GPUs.
    nnunet.DDP = lambda network, device_ids: DistributedDataParallel(network)
    trainer = make_trainer(tiny, "AliceTrainer_scratch_1epoch", precision="fp32", seed=1, aux_ramp=0.0, aux_weight=0.5)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert len(batch["data"]) == 1

    alone = copy.copy(trainer)
    alone.network, alone.aux = copy.deepcopy(trainer.plain_network), copy.deepcopy(trainer.aux)
    alone.network.encoder._forward_hooks.clear()
    alone.is_ddp = False
    alone.generator = torch.Generator()
    alone.generator.set_state(trainer.generator.get_state())
    aux = alone.aux
    alone.build_aux = lambda channels, strides: aux
    alone.optimizer, _ = alone.configure_optimizers()
    for one in (alone, trainer):
        one.optimizer.step = lambda: None
        one.train_step(copy.deepcopy(batch))
    result = {"reduced": gradients(trainer), "alone": gradients(alone)}
    del trainer.optimizer.step
    trainer.run_training()
    result["weights"] = {**values(trainer.plain_network), **values(trainer.aux)}
    torch.save(result, folder / f"rank{rank}.pth")
    dist.destroy_process_group()


def gradients(trainer) -> list[torch.Tensor]:
    parameters = [*trainer.plain_network.parameters(), *trainer.aux.parameters()]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


@pytest.mark.slow
def test_two_ranks_average_their_gradients_and_stay_equal(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    torch.multiprocessing.spawn(rank_main, (tiny, tmp_path), RANKS)
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS)]
    assert_same(ranks[0]["reduced"], ranks[1]["reduced"])
    assert_same(ranks[0]["weights"], ranks[1]["weights"])
    pairs = zip(ranks[0]["alone"], ranks[1]["alone"], ranks[0]["reduced"], strict=True)
    for first, second, reduced in pairs:
        assert torch.allclose((first + second) / 2, reduced, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(ranks[0]["alone"], ranks[1]["alone"], strict=True))
    written = list((tmp_path / "results").rglob("checkpoint_final.pth"))
    assert len(written) == 1
