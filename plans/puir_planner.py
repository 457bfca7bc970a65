"""Planners for PUIRTrainer, which encodes each modality alone."""

from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_invariance.networks.architectures.puir import feature_voxels


class PUIRPlanner(ExperimentPlanner):
    """nnU-Net's planner, which counts what PUIRTrainer keeps of a sample, so that the planned batch fits.

    Plans ``PUIRPlans``; the preprocessed data of 2d and 3d_fullres are those of ``nnUNetPlans``.
    """

    def __init__(self, *args: Any, plans_name: str = "PUIRPlans", **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name, **kwargs)

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: tuple[str, ...],
    ) -> np.int64:
        """Feature voxels of one sample in training."""
        network = get_network_from_plans(
            arch_class_name, arch_kwargs, arch_kwargs_req_import, 1, output_channels, allow_init=False
        )
        return feature_voxels(network, input_channels, patch_size)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Spacing and normalisation of these two do not depend on memory, so their data are there already."""
        name = "nnUNetPlans" if configuration_name in ("2d", "3d_fullres") else self.plans_identifier
        return f"{name}_{configuration_name}"


class PUIRPlannerResEncL(nnUNetPlannerResEncL):
    """The same with nnU-Net's large residual encoder; plans ``PUIRResEncLPlans``."""

    static_estimate_VRAM_usage = staticmethod(PUIRPlanner.static_estimate_VRAM_usage)

    def __init__(self, *args: Any, plans_name: str = "PUIRResEncLPlans", **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name, **kwargs)
