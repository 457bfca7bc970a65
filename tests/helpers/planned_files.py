"""Plans of a data set without images, and the name of a preprocessed case."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_invariance.networks.planned import Architecture
from tests.helpers.small_checkpoints import architecture

NAME, BASE, CONFIGURATION = "Dataset778_Planned", "nnUNetPlans", "3d_fullres"


def plans_of_network(network: Architecture) -> dict[str, Any]:
    """Content of a plans file with the configurations 3d_fullres and 3d_lowres."""
    small = network.to_dict()
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32, 32, 32],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {k: small[k] for k in ("network_class_name", "arch_kwargs", "_kw_requires_import")},
        "nnunet_invariance": {"seed": 5},
    }
    lowres = {**configuration, "data_identifier": "nnUNetPlans_3d_lowres", "spacing": [2.0, 2.0, 2.0]}
    return {
        "dataset_name": NAME,
        "plans_name": BASE,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "configurations": {CONFIGURATION: configuration, "3d_lowres": lowres},
    }


def write_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Architecture | None = None) -> Path:
    """Create nnU-Net's three folders and the plans of a network; returns the data set's preprocessed folder."""
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    (tmp_path / "raw" / NAME).mkdir()
    folder = tmp_path / "preprocessed" / NAME
    plans = plans_of_network(network or architecture())
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans_3d_fullres" / "case.b2nd").touch()
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"})
    )
    return folder
