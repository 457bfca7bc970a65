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


def join(rank: int, folder: Path) -> None:
    """Join the process group, and let nnU-Net train on the CPU in it."""
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


def rank_main(rank: int, tiny, folder: Path) -> None:
    """Run one rank: save the averaged gradients, those of its own samples, and the weights after an epoch."""
    join(rank, folder)
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


def rank_with_unlabelled(rank: int, tiny, folder: Path) -> None:
    """Run one rank of a training with unlabelled cases: save student, teacher and the first batch of the rank."""
    join(rank, folder)
    options = {"seed": 1, "precision": "fp32", "unlabelled": {"cases": "rest", "ramp": 0.0, "confidence": 0.0}}
    trainer = make_trainer(tiny, "BaselineTrainer_2epochs", **options)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.do_split = lambda: (["case_000"], ["case_001"])
    trainer.perform_actual_validation = lambda *_: None
    trainer.initialize()
    learning = trainer.unlabelled
    learning.trust.given, learning.trust.judge = True, lambda *_: True
    batches = []
    start = trainer.get_dataloaders

    def get_dataloaders():
        loaders = start()
        following = learning.loader.data_loader
        learning.loader = (batches.append(batch["data"]) or batch for batch in following)
        return loaders

    trainer.get_dataloaders = get_dataloaders
    trainer.run_training()
    result = {"student": values(trainer.plain_network), "teacher": values(learning.teacher.network)}
    dice = trainer.logger.get_value("teacher_dice", None)
    torch.save({**result, "dice": torch.tensor(dice), "batch": batches[0]}, folder / f"rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_learn_from_different_unlabelled_patches_and_stay_equal(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    torch.multiprocessing.spawn(rank_with_unlabelled, (tiny, tmp_path), RANKS)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(RANKS))
    assert not torch.equal(first.pop("batch"), second.pop("batch"))
    assert_same(first, second)


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
