"""Planners for PUIRTrainer, which encodes each modality separately."""

from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_invariance.networks.architectures.puir import feature_voxels


class PUIRPlanner(ExperimentPlanner):
    """nnU-Net's planner with the memory estimate of PUIRTrainer, so that the planned batch fits.

    It writes ``PUIRPlans``; 2d and 3d_fullres use the preprocessed data of ``nnUNetPlans``.

    >>> PUIRPlanner.generate_data_identifier(None, "3d_fullres")
    'nnUNetPlans_3d_fullres'
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
        """Number of feature voxels of one sample in training."""
        network = get_network_from_plans(
            arch_class_name, arch_kwargs, arch_kwargs_req_import, 1, output_channels, allow_init=False
        )
        return feature_voxels(network, input_channels, patch_size)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Reuse nnU-Net's preprocessed data for configurations whose preprocessing does not depend on memory."""
        name = "nnUNetPlans" if configuration_name in ("2d", "3d_fullres") else self.plans_identifier
        return f"{name}_{configuration_name}"


class PUIRPlannerResEncL(nnUNetPlannerResEncL):
    """:class:`PUIRPlanner` with nnU-Net's large residual encoder; it writes ``PUIRResEncLPlans``.

    >>> issubclass(PUIRPlannerResEncL, nnUNetPlannerResEncL)
    True
    """

    static_estimate_VRAM_usage = staticmethod(PUIRPlanner.static_estimate_VRAM_usage)

    def __init__(self, *args: Any, plans_name: str = "PUIRResEncLPlans", **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name, **kwargs)
