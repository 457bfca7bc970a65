"""The files of a finished comparison without running it: predictions, records, models and scores of a small grid."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.evaluation.runner.jobs import Job
from nnunet_invariance.evaluation.runner.record import add_command
from nnunet_invariance.evaluation.runner.stored import RECORD, stored_jobs
from nnunet_invariance.evaluation.scoring.scores import Score

DATASET = "Dataset555_<Stored>"
GAINS = {"AliceTrainer_2epochs": -0.05, "AliceTrainer_scratch_2epochs": 0.0, "MAETrainer_2epochs": 0.1}
UNFINISHED = "MAETrainer_2epochs/shots10_draw1"
LABELS = {"background": 0, "organ": 1, "core": 2}


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def described(tests: list[str]) -> dict:
    alice, twin, mae = GAINS
    return {
        "protocol": "few-shot",
        "dataset": DATASET,
        "plans": "P",
        "configuration": "3d_fullres",
        "seed": 0,
        "mirroring": False,
        "tolerance": 1.0,
        "arms": {name: {"trainer": name, "environment": []} for name in GAINS},
        "pretrainings": {"alice__P__3d_fullres": {"sha256": "abc", "steps": 100, "seconds": 90.0}},
        "starts_from": {alice: "alice__P__3d_fullres"},
        "contrasts": [
            {"name": f"{alice} - {twin}", "arm": alice, "reference": twin, "family": "own twin"},
            {"name": f"{mae} - {twin}", "arm": mae, "reference": twin, "family": twin},
        ],
        "left_out": {"PUIRTrainer": "needs at least 2 channels, it has 1"},
        "transductive": {},
        "subsets": [
            {"name": f"shots{k}_draw{draw}", "shots": k, "draw": draw, "train": ["a"] * k, "val": ["v"]}
            for k in (10, 3)
            for draw in range(2)
        ],
        "tests": [{"name": name, "cases": [f"case_{i}" for i in range(6)]} for name in tests],
    }


def write_scores_of(job: Job, rng: np.random.Generator | None = None) -> None:
    """Write scores: the gain of the arm, a trend over the cases, noise if there is a generator."""
    rows = []
    for test in job.setting.tests:
        for i, case in enumerate(test.cases):
            dice = 0.7 + GAINS[job.arm.name] + (rng.normal(0, 0.005) if rng else 0.0) + 0.01 * i
            start = (job.condition(test), job.subset.draw, job.arm.name, case.name)
            rows += [Score(*start, label, dice, dice, 9 - 9 * dice, 9, 9) for label in ("organ", "core")]
    write_csv(job.scores, rows, Score)


def write_comparison(out: Path, tests: tuple[str, ...] = ("",)) -> Path:
    """Write three arms, two draws with 10 and with 3 shots, six cases per test set; one cell is not finished."""
    rng = np.random.default_rng(0)
    dataset = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}
    record = {"comparison": described(list(tests)), "versions": {"torch": "2"}, "machine": {"cpu": "<c>"}, "jobs": {}}
    write_json(out / RECORD, record)
    write_json(out / "nnUNet_preprocessed" / DATASET / "dataset.json", dataset)
    truth = np.zeros((6, 24, 30), np.uint8)
    truth[1:5, 4:20, 4:24], truth[2:4, 8:14, 8:16] = 1, 2
    for name in tests:
        for i in range(6):
            write_image(
                out / "test_images" / name / f"case_{i}_0000.nii.gz", rng.random(truth.shape).astype(np.float32)
            )
            write_image(out / "test_labels" / name / f"case_{i}.nii.gz", truth)
    for job in stored_jobs(out):
        if job.name == UNFINISHED:
            continue
        for test in job.setting.tests:
            for i, case in enumerate(test.cases):
                write_image(job.predictions(test) / f"{case.name}.nii.gz", np.roll(truth, i, 1))
        write_scores_of(job, rng)
        add_command(job.record, "train", ["nnUNetv2_train", "<&>", job.name], 60.0)
        add_command(job.record, "predict", ["nnUNetv2_predict", job.name], 6.0)
    entry = {"parameters": 1500}
    report = {"checkpoint": "a/weights.safetensors", "branch": "teacher", "decoder": "random", "coverage": 1.0}
    report |= {"matched": [entry], "adapted": [], "skipped": [], "missing": [entry]}
    alice = stored_jobs(out)[0].model
    alice.mkdir(parents=True)
    (alice / "transfer_report.json").write_text(json.dumps(report))
    return out
