"""Noisy student: nnU-Net trained on its own labels of the cases without labels, the rival of a mean teacher.

A trained nnU-Net predicts the preprocessed cases that its fold neither trains on nor validates on. The script writes
a tree in which these cases have the predicted labels, with the same number of the fold, which trains on them and on
the labelled cases; both kinds are sampled equally often. Then the stock command trains a new network there:

    python -m benchmarks.studies.noisy_student --model MODEL_FOLDER --fold 0 --out TREE [--test CASE ...] [-device cpu]
    nnUNet_preprocessed=TREE/nnUNet_preprocessed nnUNet_results=TREE/nnUNet_results \
        nnUNetv2_train DATASET CONFIGURATION 0 -tr TRAINER -p PLANS

MODEL_FOLDER is nnU-Net's (TRAINER__PLANS__CONFIGURATION), and nnUNet_preprocessed names the tree that it was trained
in. A second round differs in --model, now the folder of the new network, and in --out. Labels of the predicted cases
are replaced and not read.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError, InvarianceError
from nnunet_invariance.evaluation.runner.tree import copy_plans, link_preprocessed
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.prediction import open_model


def main() -> int:
    """Write the tree of one round; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the teacher: TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("--fold", type=int, default=0, help="fold of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="new folder for nnUNet_preprocessed and nnUNet_results")
    parser.add_argument("--test", nargs="*", default=[], help="names of cases that are left out")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cuda")
    args = parser.parse_args()
    try:
        train = write_round(args.model, args.fold, args.out.resolve(), args.test, args.device)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(set(train))} cases to train on")
    return 0


def write_round(model: Path, fold: int, out: Path, test: Collection[str] = (), device: str = "cpu") -> list[str]:
    """Write the plans, labelled cases, and cases with the teacher's labels below ``out``; returns the training list.

    Raises:
        ComparisonError: there is no case without a label.
    """
    plans, dataset = read_json(model / "plans.json"), read_json(model / "dataset.json")
    configuration = model.resolve().name.rsplit("__", 1)[-1]
    planned = open_planned_dataset(plans["dataset_name"], configuration, plans["plans_name"])
    split = read_json(planned.base / "splits_final.json")[fold]
    labelled = {*split["train"], *split["val"]}
    rest = sorted({path.stem for path in planned.folder.glob("*.pkl")} - labelled - set(test))
    if not rest:
        msg = f"{planned.folder} holds no case outside of fold {fold}, so there is nothing to predict. "
        raise ComparisonError(f"{msg}Preprocess further cases, or choose a fold with fewer cases.")
    base = out / "nnUNet_preprocessed" / planned.name
    copy_plans(base, planned)
    link_preprocessed(base, planned, labelled)
    predictor = nnUNetPredictor(device=torch.device(device), perform_everything_on_device=device == "cuda")
    predictor.allow_tqdm = False
    open_model(predictor, model, [str(fold)])
    manager = planned.plans.get_label_manager(dataset)
    for case in rest:
        label_case(predictor, manager, planned, case, base / planned.folder.name / case)
    train = balanced(split["train"], rest)
    write_json(base / "splits_final.json", [{"train": train, "val": list(split["val"])}] * (fold + 1))
    (out / "nnUNet_results").mkdir(parents=True, exist_ok=True)
    return train


def balanced(labelled: Sequence[str], others: Sequence[str]) -> list[str]:
    """Both lists, with the shorter one repeated, so that nnU-Net samples each about equally often.

    >>> balanced(["a"], ["b", "c", "d"])
    ['a', 'a', 'a', 'b', 'c', 'd']
    """
    longest = max(len(labelled), len(others))
    return [case for part in (labelled, others) for case in list(part) * max(1, round(longest / len(part)))]


def label_case(
    predictor: nnUNetPredictor, manager: LabelManager, planned: PlannedDataset, case: str, target: Path
) -> None:
    """Predict a preprocessed case and write it with the predicted labels; a finished case is kept."""
    if target.with_name(f"{case}.pkl").is_file():
        return
    stored, before, _, properties = nnUNetDatasetBlosc2(str(planned.folder), [case]).load_case(case)
    image, outside = np.asarray(stored[:]), np.asarray(before[:]) < 0
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image))
    labels = np.asarray(manager.convert_logits_to_segmentation(logits))[None]
    properties = with_locations(properties, labels, manager)
    labels = np.where(outside & (labels == 0), -1, labels).astype(np.int16)  # as nnU-Net marks voxels outside
    blocks, chunks = comp_blosc2_params(image.shape, tuple(planned.patch_size), image.itemsize)
    nnUNetDatasetBlosc2.save_case(image, labels, properties, str(target), chunks=chunks, blocks=blocks)


def with_locations(properties: dict[str, Any], labels: np.ndarray, manager: LabelManager) -> dict[str, Any]:
    """Properties of a case with the places of the predicted labels, which nnU-Net samples patches at."""
    wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    wanted = [*wanted, (-1, *manager.all_labels)] if manager.has_ignore_label else wanted
    return {**properties, "class_locations": DefaultPreprocessor._sample_foreground_locations(labels, wanted)}


if __name__ == "__main__":
    raise SystemExit(main())
