"""Checkpoint files in the formats of other tools, with the networks of small_checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_invariance.networks.planned import Architecture
from tests.helpers.small_checkpoints import build

PATCH, SPACING = [32, 32, 32], [0.5, 1.0, 1.5]


def plans_of(planned: Architecture, dimensions: int = 3) -> dict[str, Any]:
    """Plans with one configuration, `cfg`."""
    plain = planned.to_dict()
    entry = {
        "data_identifier": "theirPlans_cfg",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": PATCH[:dimensions],
        "spacing": SPACING[-dimensions:],
        "normalization_schemes": ["ZScoreNormalization"] * planned.input_channels,
        "use_mask_for_norm": [False] * planned.input_channels,
        "architecture": {key: plain[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import")},
    }
    return {"dataset_name": "Dataset001_Theirs", "plans_name": "theirPlans", "configurations": {"cfg": entry}}


def nnunet_file(path: Path, planned: Architecture, network: nn.Module) -> Path:
    names = {str(i): f"T{i}" for i in range(planned.input_channels)}
    arguments = {
        "plans": plans_of(planned),
        "configuration": "cfg",
        "fold": 0,
        "dataset_json": {"channel_names": names},
    }
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "logging": {"mean_fg_dice": [np.float32(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 7,
        "init_args": {**arguments, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, path)
    return path


def adaptation_plan(planned: Architecture, **changes: Any) -> dict[str, Any]:
    kind = planned.network_class_name.rsplit(".", 1)[-1]
    entry = {
        "data_identifier": "nnsslPlans_onemmiso",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "onemmiso",
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "spacing": [1, 1, 1],
        "patch_size": PATCH,
    }
    plan = {
        "architecture_plans": {
            "arch_class_name": kind,
            "arch_kwargs": planned.arch_kwargs,
            "arch_kwargs_requiring_import": list(planned._kw_requires_import),
        },
        "pretrain_plan": {
            "dataset_name": "Dataset745_Open",
            "plans_name": "nnsslPlans",
            "configurations": {"onemmiso": entry},
        },
        "pretrain_num_input_channels": planned.input_channels,
        "recommended_downstream_patchsize": PATCH,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }
    return {**plan, **changes}


def nnssl_file(path: Path, planned: Architecture, network: nn.Module, **changes: Any) -> Path:
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": None,
        "current_epoch": 1000,
        "init_args": {"configuration": "onemmiso"},
        "trainer_name": "BaseMAETrainer",
        "nnssl_adaptation_plan": adaptation_plan(planned, **changes),
    }
    torch.save(content, path)
    return path


def encoder_file(path: Path, planned: Architecture, network: nn.Module) -> Path:
    """Write a bare encoder, and its plans as PATH.json."""
    torch.save(dict(network.encoder.state_dict()), path)
    path.with_suffix(".json").write_text(json.dumps(plans_of(planned)))
    return path


FILES: dict[str, Callable[..., Path]] = {"nnunet": nnunet_file, "nnssl": nnssl_file, "encoder": encoder_file}


def write_foreign(source: str, path: Path, planned: Architecture, seed: int = 3) -> nn.Module:
    """Write a file in the format of a tool; returns the network in it."""
    network = build(planned, seed)
    FILES[source](path, planned, network)
    return network
