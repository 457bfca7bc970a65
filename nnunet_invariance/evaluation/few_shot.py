"""The few-shot protocol: k labelled cases to train on, the same held-out cases to test on."""

import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_invariance.evaluation.cases import (
    checkpoints_in_use,
    labelled_cases,
    preprocessed_cases,
    require_labelled,
    seen_cases,
)
from nnunet_invariance.evaluation.comparison import Comparison, run_comparison
from nnunet_invariance.evaluation.jobs import Arm
from nnunet_invariance.evaluation.splits import draw_subsets, draw_test_cases, require_disjoint
from nnunet_invariance.pretraining.planned_dataset import open_planned_dataset


def few_shot(
    dataset: str,
    configuration: str,
    plans_name: str,
    arms: Sequence[Arm],
    *,
    shots: Sequence[int],
    draws: int = 1,
    test_cases: Sequence[str] | None = None,
    n_test: int = 20,
    n_val: int = 2,
    seed: int = 0,
    device: str = "cuda",
    mirroring: bool = True,
    baseline: str | None = None,
    out: Path | None = None,
) -> Path:
    """Train every arm on every drawn subset, predict the test cases and score them; returns the output folder.

    Test cases are ``test_cases``, or ``n_test`` drawn by seed from the labelled raw cases that no finished pre-training
    for these plans has seen. Training and validation cases come from the other labelled, preprocessed cases. A second
    call with the same arguments goes on where the first one ended. ``baseline`` (default: the last arm) is what the
    paired differences refer to.

    Raises:
        ComparisonError: the cases do not suffice or overlap, the folder holds another comparison, a command failed.
    """
    planned = open_planned_dataset(dataset, configuration, plans_name)
    results = Path(os.environ["nnUNet_results"]) / planned.name
    out = (out or results / "evaluation" / f"few-shot__{plans_name}__{configuration}").resolve()
    labelled = labelled_cases(Path(os.environ["nnUNet_raw"]) / planned.name, planned.dataset_json)
    checkpoints = checkpoints_in_use(planned, results / "pretraining", [arm.environment for arm in arms])
    seen = seen_cases(checkpoints)
    test = tuple(test_cases) if test_cases else draw_test_cases(labelled, n_test, seed, seen)
    require_labelled(test, labelled)
    ending = planned.dataset_json["file_ending"]
    pool = preprocessed_cases(planned.folder, planned.base / "gt_segmentations", ending) - set(test)
    subsets = draw_subsets(pool, shots, draws, n_val, seed)
    require_disjoint(test, subsets, seen)
    cases = [labelled[name] for name in test]
    comparison = Comparison("few-shot", planned, arms, subsets, cases, checkpoints, seed, device, mirroring)
    return run_comparison(comparison, out, baseline)
