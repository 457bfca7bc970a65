"""Demo of PUIR: pre-training on several modalities, modality translation, segmentation with missing modalities."""

import html
from pathlib import Path

import numpy as np

from nnunet_invariance.common.html import details, inline, table
from nnunet_invariance.common.pictures import panels, png
from nnunet_invariance.demo.data import ENDING, MODALITIES, write_modalities
from nnunet_invariance.demo.next_steps import next_steps
from nnunet_invariance.demo.page import Page, Section, pretraining_section, training_section, transfer_section, verdict
from nnunet_invariance.demo.pictures import read
from nnunet_invariance.demo.steps import (
    CONFIGURATION,
    DATASET,
    PLANS,
    SEED,
    Demo,
    compare,
    plan,
    pretrain,
    pretraining_folder,
)
from nnunet_invariance.evaluation.protocols.missing_modality import JOIN, PROTOCOL, choose_subsets, missing_modalities
from nnunet_invariance.evaluation.report.names import short_names
from nnunet_invariance.evaluation.report.pictures import draw_heat_map
from nnunet_invariance.evaluation.scoring.scores import read_scores
from nnunet_invariance.evaluation.statistics.effects import arm_means
from nnunet_invariance.modality_translation.evaluate import CONVENTIONS, EXAMPLES, HEAD, headline, read_pairs, summarise

STEPS = 5
N_TRAIN, N_TEST = 9, 3
PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 3, 15
TRANSLATION_EPOCHS, TRANSLATION_ITERATIONS = 3, 10
EPOCHS, ITERATIONS = 5, 12
#: Two of the seven subsets, because each prediction starts new nnU-Net processes.
SUBSETS = [JOIN.join(MODALITIES), next(iter(MODALITIES))]
NEXT_STEPS = next_steps(
    "PUIRTrainer",
    ("missing-modality", "--shots", "5", "--draws", "3", "--pretrain"),
    method="puir",
    before_prediction=["nnunet-invariance complete imagesTs completed -d Dataset123_Mine"],
    images="completed",
)


def arms() -> list[str]:
    """Names of the trainer and of plain nnU-Net with the same number of epochs."""
    return [f"PUIRTrainer_{EPOCHS}epochs", f"BaselineTrainer_{EPOCHS}epochs"]


def run(demo: Demo) -> None:
    """Create data, plan, pre-train, train and score the translation, train both arms, predict every subset."""
    with demo.step("making a small data set: three modalities per case, some of them missing"):
        write_modalities(demo.raw, N_TRAIN, N_TEST, SEED)
    plan(demo, ITERATIONS, prior=16)
    with demo.step(f"pre-training puir on {N_TRAIN} cases, without labels"):
        pretrain(demo, "puir", PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS, ["--set", "prior=16"])
    with demo.step(f"modality translation: training, and scores on {N_TEST} test cases"):
        words = ["nnunet-invariance", "translate"]
        where = [DATASET, CONFIGURATION, "-p", PLANS, "-device", "cpu"]
        length = ["--epochs", str(TRANSLATION_EPOCHS), "--iterations", str(TRANSLATION_ITERATIONS), "--seed", str(SEED)]
        demo.run("translate_train", [*words, "train", *where, *length, "--set", "prior=16", "lr=0.001"])
        images, scores = (str(path.relative_to(demo.out)) for path in (demo.raw / "imagesTs", _translation(demo)))
        demo.run("translate_evaluate", [*words, "evaluate", *where, "-i", images, "-o", scores])
    channels = list(MODALITIES)
    conditions = missing_modalities(channels, choose_subsets(channels, SUBSETS), ENDING)
    compare(demo, arms(), N_TRAIN, protocol=PROTOCOL, conditions=conditions)


def draw(demo: Demo) -> Page:
    """Create the page with the results of the steps."""
    return Page(
        "puir: any subset of the modalities",
        [
            _subset_section(demo),
            _data_section(demo),
            pretraining_section("Pre-training, without labels", pretraining_folder(demo, "puir")),
            _translation_section(demo),
            transfer_section(demo),
            training_section(demo),
        ],
    )


def _translation(demo: Demo) -> Path:
    return demo.out / "nnUNet_results" / DATASET / "transfer"


def _data_section(demo: Demo) -> Section:
    """Show three training cases; the third lacks a modality."""
    figure, axes = panels(3, len(MODALITIES))
    for number, row in enumerate(axes):
        for (channel, name), axis in zip(enumerate(MODALITIES), row, strict=True):
            image = read(demo.raw / "imagesTr" / f"case_{number:03d}_{channel:04d}{ENDING}")
            missing = not np.any(image)
            axis.imshow(image[len(image) // 2], cmap="gray", vmin=0, vmax=200)
            axis.set_title(f"case_{number:03d}, {name}{': missing' if missing else ''}", fontsize=8)
            axis.set_axis_off()
    text = "<p>Intensities of tissues are the same in every case. Every third training case lacks a modality.</p>\n"
    return Section("The data", text + inline(png(figure), "Three cases in three modalities, one of them missing"))


def _translation_section(demo: Demo) -> Section:
    """Show scores and pictures of the translation from each modality to every other."""
    folder = _translation(demo)
    picture = inline((folder / EXAMPLES).read_bytes(), "Real images, and the images predicted from each modality")
    rows = read_pairs(folder)
    scores = table(HEAD, summarise(rows), 7) + details("What do the columns mean?", CONVENTIONS)
    return Section("Modality translation", f"<p>{html.escape(headline(rows))}</p>\n{picture}{scores}")


def _subset_section(demo: Demo) -> Section:
    """Show the verdict and the mean Dice with every subset of the modalities."""
    means = arm_means(read_scores(demo.comparison / "scores.csv"), SEED)
    dice, names = [mean for mean in means if mean.metric == "dice"], short_names(arms(), PLANS)
    picture = inline(draw_heat_map(dice, names), "Mean Dice by modalities and class")
    plain = names[arms()[1]]
    text = f"<p>Modalities that are not in the name are images of zeros. {plain} is plain nnU-Net.</p>\n"
    return Section("Dice with missing modalities", verdict(demo) + text + picture)
