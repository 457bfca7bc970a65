"""nnU-Net's planning and preprocessing in this process."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from tests.helpers.threads import threads_for_processes
from tests.helpers.tiny_dataset import cut_down


def sample_few_voxels(patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net sample 1e5 voxels for the fingerprint of a data set; it samples 1e8, however small the images."""
    _set_when_made(patch, DatasetFingerprintExtractor, "num_foreground_voxels_for_intensitystats", 1e5)


def plan_narrow_networks(patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net plan networks with 8 features in the first stage; it plans 32."""
    _set_when_made(patch, ExperimentPlanner, "UNet_base_num_features", 8)


def _set_when_made(patch: pytest.MonkeyPatch, kind: type, name: str, value: float) -> None:
    start = kind.__init__

    def start_and_set(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        setattr(self, name, value)

    patch.setattr(kind, "__init__", start_and_set)


def plan_and_preprocess(preprocessed: Path, identifier: int) -> None:
    """Run nnU-Net's fingerprint, planning and preprocessing in this process with smaller plans."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset

    with pytest.MonkeyPatch.context() as patch, threads_for_processes(), redirect_stdout(io.StringIO()):
        patch.setenv("nnUNet_n_proc_DA", "1")  # the planner passes it to torch.set_num_threads
        sample_few_voxels(patch)
        extract_fingerprint_dataset(identifier, DatasetFingerprintExtractor, 1, verbose=False, show_progress_bar=False)
        ExperimentPlanner(identifier).plan_experiment()
        file = preprocessed / "nnUNetPlans.json"
        file.write_text(json.dumps(cut_down(json.loads(file.read_text()), "nnUNetPlans"), indent=2))
        preprocess_dataset(identifier, "nnUNetPlans", ("3d_fullres",), (1,), show_progress_bar=False)
