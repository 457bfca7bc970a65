"""Demo of ICMSeg: training on one contrast, and testing on it and on two contrasts that no training case has."""

from nnunet_invariance.common.html import inline
from nnunet_invariance.demo.data import ENDING, write_dataset
from nnunet_invariance.demo.next_steps import next_steps
from nnunet_invariance.demo.page import (
    Page,
    Section,
    data_section,
    prediction_section,
    score_section,
    training_section,
)
from nnunet_invariance.demo.pictures import read
from nnunet_invariance.demo.steps import (
    CONFIGURATION,
    DATASET,
    PLANS,
    SEED,
    Demo,
    plan,
    remember_commands,
    settings,
)
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.cross_modality import run_cross_modality
from nnunet_invariance.evaluation.report.style_pictures import draw_interventions
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset

STEPS = 3
N_TRAIN, N_TEST = 8, 3
EPOCHS, ITERATIONS = 8, 16
EVALUATION = ("cross-modality", "--targets", "Dataset124_Other", "--trainers", "ICMSegTrainer")
NEXT_STEPS = next_steps("ICMSegTrainer", (*EVALUATION, "--baselines", "nnUNetTrainer", "--draws", "3"))
#: Intensities of air, body, other organ, organ and core in each data set.
LEVELS = {
    DATASET: (20, 70, 110, 150, 200),
    "Dataset991_Inverted": (200, 150, 110, 70, 20),
    "Dataset992_Remapped": (20, 150, 70, 200, 110),
}


def arms() -> list[str]:
    """Names of the trainer and of plain nnU-Net."""
    return [f"ICMSegTrainer_{EPOCHS}epochs", f"BaselineTrainer_{EPOCHS}epochs"]


def run(demo: Demo) -> None:
    """Create data, plan, train with and without styles, predict and score all three contrasts."""
    source, *targets = LEVELS
    with demo.step("making three small data sets: the same shapes, another contrast in every set"):
        for number, (name, levels) in enumerate(LEVELS.items()):
            n = N_TRAIN + N_TEST if name == source else N_TEST
            write_dataset(demo.raw.with_name(name), n, levels=levels, seed=SEED + number, prefix=f"set{number}")
    plan(demo, ITERATIONS)
    with demo.step(f"training {' and '.join(arms())} on {source}, testing all three contrasts"):
        run_cross_modality(
            open_planned_dataset(DATASET, CONFIGURATION, PLANS),
            Selection(tuple(Arm(arm, arm) for arm in arms())),
            settings(demo),
            targets,
            n_source=N_TEST,
        )
        remember_commands(demo)


def draw(demo: Demo) -> Page:
    """Create the page with the results of the steps and a training image in the style of every intervention."""
    image, labels = (
        demo.raw / f"{kind}Tr" / f"set0_000{end}{ENDING}" for kind, end in (("images", "_0000"), ("labels", ""))
    )
    styles = inline(
        draw_interventions(read(image), read(labels), SEED), "A training image in the styles of each intervention"
    )
    return Page(
        "icmseg: from one contrast to another",
        [
            score_section(demo),
            data_section(
                "Each data set has another contrast; only the first is used for training.",
                [demo.raw.with_name(n) for n in LEVELS],
            ),
            Section("The interventions, three samples each, on a training image", styles),
            training_section(demo),
            prediction_section(demo),
        ],
    )
