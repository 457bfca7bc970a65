"""The files of a finished demo of Alice without running it."""

import json
import shutil
from pathlib import Path

import torch

from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.demo.data import write_dataset
from nnunet_invariance.demo.steps import CONFIGURATION, DATASET, PLANS, Demo, pretraining_folder
from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.pretraining.engine.history import draw_history

ARMS = ["AliceTrainer_2epochs", "AliceTrainer_scratch_2epochs"]
RECORD = {
    "protocol": "few-shot",
    "dataset": DATASET,
    "plans": PLANS,
    "configuration": CONFIGURATION,
    "seed": 0,
    "contrasts": [],
    "pretrainings": {},
    "starts_from": {},
    "left_out": {},
    "transductive": {},
    "plans_sha256": "0" * 64,
    "mirroring": False,
    "tolerance": None,
    "arms": {name: {"trainer": name, "environment": []} for name in ARMS},
    "subsets": [{"name": "shots2_draw0", "shots": 2, "draw": 0, "train": [], "val": []}],
    "tests": [{"name": "", "cases": ["case_002", "case_003"]}],
}


def write_demo(out: Path) -> Path:
    """What a demo leaves, as far as the page reads it; the first arm predicts the reference, the second nothing."""
    raw = out / "nnUNet_raw" / RECORD["dataset"]
    write_dataset(raw, 2, 2)
    comparison = out / "comparison"
    scores = []
    for number, arm in enumerate(ARMS):
        model = (
            comparison
            / "arms"
            / arm
            / "nnUNet_results"
            / RECORD["dataset"]
            / f"{arm}__{PLANS}__{CONFIGURATION}"
            / "fold_0"
        )
        model.mkdir(parents=True)
        log = {"train_losses": [1.0, 0.5], "mean_fg_dice": [0.1, 0.4]}
        torch.save({"logging": log}, model / "checkpoint_final.pth")
        entry = {"parameters": 1500}
        report = {"checkpoint": "/a/b/weights.safetensors", "branch": "teacher", "decoder": "random", "coverage": 1.0}
        report |= {"matched": [entry, entry], "adapted": [], "skipped": [], "missing": [entry]}
        (model / "transfer_report.json").write_text(json.dumps(report))
        predictions = comparison / "arms" / arm / "shots2_draw0" / "predictions"
        predictions.mkdir(parents=True)
        for case in RECORD["tests"][0]["cases"]:
            (predictions / f"{case}.nii.gz").write_bytes((raw / "labelsTs" / f"{case}.nii.gz").read_bytes())
            scores += [
                Score("2 shots", 0, arm, case, label, 1.0 - number / 2, 1.0, 0.0, 9, 9) for label in ("organ", "core")
            ]
    write_csv(comparison / "scores.csv", scores, Score)
    (comparison / "comparison.json").write_text(
        json.dumps({"comparison": RECORD, "versions": {}, "machine": {}, "jobs": {}})
    )
    (comparison / "nnUNet_preprocessed" / DATASET).mkdir(parents=True)
    (comparison / "nnUNet_preprocessed" / DATASET / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    for kind in ("images", "labels"):
        shutil.copytree(raw / f"{kind}Ts", comparison / f"test_{kind}")
    pretraining = pretraining_folder(Demo(out, 1), "alice")
    pretraining.mkdir(parents=True)
    curves = [{"epoch": epoch, "loss": 1 / epoch, "lr": 0.1, "skipped": 0} for epoch in range(1, 6)]
    draw_history(curves, ["collapse: <uniform>; lower it"]).savefig(pretraining / "progress.png", dpi=100)
    shutil.copy(pretraining / "progress.png", pretraining / "samples.png")
    (pretraining / "log.txt").write_text("2026-01-01 10:00:00,000 ERROR epoch 5: collapse: <uniform>; lower it\n")
    return out
