"""Demo of anatomix: pre-training on synthetic volumes alone, then AnatomixTrainer and its twin from random weights."""

from nnunet_invariance.common.html import inline
from nnunet_invariance.demo.data import write_dataset
from nnunet_invariance.demo.next_steps import next_steps
from nnunet_invariance.demo.page import (
    Page,
    Section,
    data_section,
    prediction_section,
    pretraining_section,
    score_section,
    training_section,
    transfer_section,
)
from nnunet_invariance.demo.steps import SEED, Demo, compare, plan, pretrain, pretraining_folder

STEPS = 5
N_TRAIN, N_TEST = 8, 3
N_SYNTHETIC = 6
PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 4, 25
#: A hundred steps learn only with a high learning rate.
SETTINGS = ("--set", "held_out=2", "volume=32", "lr=2e-3")
EPOCHS, ITERATIONS = 6, 16
EVALUATION = (
    "few-shot",
    "--trainers",
    "AnatomixTrainer",
    "--baselines",
    "nnUNetTrainer",
    "--shots",
    "5",
    "--draws",
    "3",
)
NEXT_STEPS = next_steps("AnatomixTrainer", (*EVALUATION, "--pretrain"), method="anatomix")


def arms() -> list[str]:
    """Names of the trainer and of its twin from random weights."""
    return [f"AnatomixTrainer_{EPOCHS}epochs", f"AnatomixTrainer_scratch_{EPOCHS}epochs"]


def run(demo: Demo) -> None:
    """Create data, plan, show synthetic volumes, pre-train on others, train with and without the weights, score."""
    with demo.step("making a small data set: the same shapes, another contrast in every case"):
        write_dataset(demo.raw, N_TRAIN, N_TEST, seed=SEED)
    plan(demo, ITERATIONS)
    with demo.step(f"making {N_SYNTHETIC} synthetic volumes for the page"):
        command = ["nnunet-invariance", "synthesize", "synthetic", "-n", str(N_SYNTHETIC), "--size", "32", "--preview"]
        demo.run("synthesize", command)
    with demo.step("pre-training anatomix on synthetic volumes of random shapes; no image is read"):
        pretrain(demo, "anatomix", PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS, SETTINGS)
    compare(demo, arms(), N_TRAIN)


def draw(demo: Demo) -> Page:
    """Create the page with the results of the steps."""
    picture = (demo.out / "synthetic" / "preview.png").read_bytes()
    synthetic = inline(picture, "Random label maps, each in two random appearances")
    return Page(
        "anatomix: from random shapes to a scored segmentation",
        [
            score_section(demo),
            data_section("Every case has the same organs in another contrast.", [demo.raw]),
            Section("Pre-training data: random label maps, each in two appearances", synthetic),
            pretraining_section("Pre-training, without images", pretraining_folder(demo, "anatomix")),
            transfer_section(demo),
            training_section(demo),
            prediction_section(demo),
        ],
    )
