"""Steps on two ranks, with gloo on the CPU in place of nccl: equal to one rank on the joined batch, and equal ranks."""

import math
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_invariance.registry import trainers
from tests.helpers.tiny_trainers import assert_same, make_trainer, values
from tests.helpers.trainers_on_two_ranks import OPTIONS, move_to_cpu, on_the_joined_batch, steps, train, use_gloo
from tests.helpers.two_ranks import on_two_ranks

ENTRIES = trainers()


def untrained(name: str) -> str:
    return f"{name}_scratch" if ENTRIES[name].has_scratch_twin else name


@pytest.fixture(scope="module")
def work(tiny, modalities):
    """The data set of each trainer."""
    return {name: modalities if entry.load().least_channels > 1 else tiny for name, entry in ENTRIES.items()}


@pytest.fixture(scope="module")
def ranks(work, tmp_path_factory):
    """One step of every trainer on two ranks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        return on_two_ranks(steps, [(dataset, untrained(name)) for name, dataset in work.items()])


@pytest.mark.parametrize("name", ENTRIES)
def test_two_ranks_equal_one_rank_on_the_joined_batch(name, work, ranks, results):
    found = [rank[untrained(name)] for rank in ranks]
    assert [len(rank["batch"]["keys"]) for rank in found] == [1, 1]
    assert not torch.equal(found[0]["batch"]["data"], found[1]["batch"]["data"])
    assert torch.equal(found[0]["gradient"], found[1]["gradient"])
    joined = on_the_joined_batch(work[name], untrained(name), found)
    assert joined["losses"].keys() == found[0]["losses"].keys()
    for part, value in joined["losses"].items():
        mean = sum(rank["losses"][part] for rank in found) / len(found)
        assert math.isclose(mean, value, rel_tol=1e-4, abs_tol=1e-6), part
    difference = (joined["gradient"] - found[0]["gradient"]).norm()
    assert difference < 1e-3 * joined["gradient"].norm()
    assert joined["gradient"].norm() > 0


@pytest.mark.slow
def test_ranks_stay_equal_and_another_number_of_ranks_continues_the_run(tiny, results):
    """nnU-Net's batch is divided among the ranks, so another number of them continues with the same batch size."""
    name = "AliceTrainer_scratch_2epochs"
    ranks = on_two_ranks(train, tiny, name)
    assert_same(*ranks)
    assert len(list(results.rglob("checkpoint_final.pth"))) == 1
    alone = make_trainer(tiny, name, **OPTIONS)
    maybe_load_checkpoint(alone, continue_training=True, validation_only=False)
    assert alone.current_epoch == 1
    assert_same(values(alone.network), ranks[0][0])
    alone.run_training()
    assert alone.current_epoch == 2
    assert any(not torch.equal(value, ranks[0][0][key]) for key, value in values(alone.network).items())


def train_with_unlabelled_cases(rank: int, tiny) -> dict[str, Any]:
    """Student, teacher, its Dice and the first unlabelled batch after a training on one rank."""
    use_gloo()
    options = {"seed": 1, "precision": "fp32", "unlabelled": {"cases": "rest", "ramp": 0.0, "confidence": 0.0}}
    trainer = move_to_cpu(make_trainer(tiny, "BaselineTrainer_2epochs", **options))
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
        learning.loader.data_loader = (batches.append(batch["data"]) or batch for batch in following)
        return loaders

    trainer.get_dataloaders = get_dataloaders
    trainer.run_training()
    result = {"student": values(trainer.plain_network), "teacher": values(learning.teacher.network)}
    dice = trainer.logger.get_value("teacher_dice", None)
    return {**result, "dice": torch.tensor(dice), "batch": batches[0]}


@pytest.mark.slow
@pytest.mark.usefixtures("results")
def test_two_ranks_learn_from_different_unlabelled_patches_and_stay_equal(tiny):
    first, second = on_two_ranks(train_with_unlabelled_cases, tiny)
    assert not torch.equal(first.pop("batch"), second.pop("batch"))
    assert_same(first, second)
