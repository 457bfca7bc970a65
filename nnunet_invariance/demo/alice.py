"""Demo of Alice: pre-training on unlabelled images, then AliceTrainer and its twin from random weights."""

from nnunet_invariance.demo.data import write_dataset
from nnunet_invariance.demo.next_steps import next_steps
from nnunet_invariance.demo.page import (
    Page,
    data_section,
    prediction_section,
    pretraining_section,
    score_section,
    training_section,
    transfer_section,
)
from nnunet_invariance.demo.steps import SEED, Demo, compare, plan, pretrain, pretraining_folder

STEPS = 4
N_TRAIN, N_TEST, N_UNLABELLED = 10, 3, 8
PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 5, 30
EPOCHS, ITERATIONS = 8, 16
EVALUATION = ("few-shot", "--trainers", "AliceTrainer", "--baselines", "nnUNetTrainer", "--shots", "5", "--draws", "3")
NEXT_STEPS = next_steps("AliceTrainer", (*EVALUATION, "--pretrain"), method="alice")


def arms() -> list[str]:
    """Names of the trainer and of its twin from random weights."""
    return [f"AliceTrainer_{EPOCHS}epochs", f"AliceTrainer_scratch_{EPOCHS}epochs"]


def run(demo: Demo) -> None:
    """Create data, plan, pre-train, train with and without the weights, predict and score."""
    with demo.step("making a small data set: the same shapes, another contrast in every case"):
        write_dataset(demo.raw, N_TRAIN, N_TEST, unlabelled=(demo.out / "unlabelled", N_UNLABELLED), seed=SEED)
    plan(demo, ITERATIONS)
    with demo.step(f"pre-training alice on {N_TRAIN + N_UNLABELLED} images, without labels"):
        pretrain(demo, "alice", PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS, ["--images", "unlabelled"])
    compare(demo, arms(), N_TRAIN)


def draw(demo: Demo) -> Page:
    """Create the page with the results of the steps."""
    return Page(
        "alice: from unlabelled images to a scored segmentation",
        [
            score_section(demo),
            data_section("Every case has the same organs in another contrast.", [demo.raw]),
            pretraining_section("Pre-training, without labels", pretraining_folder(demo, "alice")),
            transfer_section(demo),
            training_section(demo),
            prediction_section(demo),
        ],
    )
