"""Plans for the nnFormer encoder, the original backbone of Alice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_invariance.networks.architectures.nnformer import SMALLEST, STRIDE, check_patch
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset, require_supported
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.plans.zscore import CT

NORMALIZATION = "SoftTissueWindowNormalization"
NETWORK = "nnunet_invariance.networks.architectures.nnformer.NNFormerUNet"
WIDTHS = (48, 48, 96, 192, 384)


def read_axes(transpose_forward: Sequence[int]) -> list[int]:
    """Return the order of the preprocessed axes in which the encoder gets x, y, z.

    >>> read_axes([0, 1, 2])
    [2, 1, 0]
    """
    return [list(transpose_forward).index(axis) for axis in (2, 1, 0)]


def nnformer_patch(planned: Sequence[int]) -> list[int]:
    """Round each side of the planned patch down to a multiple of 16, and up to at least 64 voxels.

    >>> nnformer_patch([40, 100, 128])
    [64, 96, 128]
    """
    return [max(SMALLEST, size // STRIDE * STRIDE) for size in planned]


def write_nnformer_plans(
    dataset_name: str,
    base_plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    new_plans_name: str | None = None,
) -> Path:
    """Write a plans copy with the nnFormer encoder, a patch that fits it, and the soft-tissue window for CT channels.

    Other normalisations, spacing and batch size stay as planned.

    Args:
        new_plans_name: default ``<base>_nnformer``.

    Raises:
        UnsupportedConfigurationError: 2-D plans or a cascade.
        OptionError, OutputError, NotPreprocessedError, UnknownConfigurationError, DatasetNotFoundError,
        EnvironmentNotSetError
    """
    dataset = open_planned_dataset(dataset_name, configuration, base_plans_name)
    require_supported(dataset, "nnformer", (3,))
    patch = nnformer_patch(dataset.patch_size)
    check_patch(patch)
    arguments = {
        "n_stages": len(WIDTHS),
        "features_per_stage": list(WIDTHS),
        "strides": [[1] * 3, *[[2] * 3] * 4],
        "axes": read_axes(dataset.plans.transpose_forward),
    }
    schemes = dataset.configuration.normalization_schemes
    changes: dict[str, Any] = {
        "architecture": {"network_class_name": NETWORK, "arch_kwargs": arguments, "_kw_requires_import": []},
        "patch_size": patch,
        "normalization_schemes": [NORMALIZATION if scheme == CT else scheme for scheme in schemes],
    }
    name = new_plans_name or f"{base_plans_name}_nnformer"
    return write_plans_copy(dataset.name, base_plans_name, name, configuration, changes=changes)
