"""nnU-Net's planning and preprocessing in this process."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.threads import threads_for_processes
from tests.helpers.tiny_dataset import cut_down


def plan_and_preprocess(preprocessed: Path, identifier: int) -> None:
    """Run nnU-Net's fingerprint, planning and preprocessing in this process with smaller plans."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset

    class QuickExtractor(DatasetFingerprintExtractor):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.num_foreground_voxels_for_intensitystats = 1e5  # nnU-Net samples 1e8 voxels, however small the images

    with pytest.MonkeyPatch.context() as patch, threads_for_processes(), redirect_stdout(io.StringIO()):
        patch.setenv("nnUNet_n_proc_DA", "1")  # the planner passes it to torch.set_num_threads
        extract_fingerprint_dataset(identifier, QuickExtractor, 1, verbose=False, show_progress_bar=False)
        ExperimentPlanner(identifier).plan_experiment()
        file = preprocessed / "nnUNetPlans.json"
        file.write_text(json.dumps(cut_down(json.loads(file.read_text()), "nnUNetPlans"), indent=2))
        preprocess_dataset(identifier, "nnUNetPlans", ("3d_fullres",), (1,), show_progress_bar=False)
