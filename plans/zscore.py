"""Plans copies with z-score instead of CT normalisation, which training on CT for another modality needs."""

from collections.abc import Sequence
from pathlib import Path

from nnunet_invariance.errors import OptionError
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

CT, ZSCORE = "CTNormalization", "ZScoreNormalization"
#: Why a plans copy is needed.
REASON = (
    "CTNormalization clips and shifts every image by the Hounsfield units of the training set. An image of another "
    "modality has none, so most of it is clipped away; z-score uses mean and standard deviation of each image."
)


def ct_remedy(schemes: Sequence[str], dataset_name: str, plans_name: str, configuration: str) -> str | None:
    """Return a warning with the remedy if a plan has CT normalisation, None otherwise."""
    if CT not in schemes:
        return None
    command = f"nnunet-invariance style plan {dataset_name} -p {plans_name} -c {configuration}"
    return f"{plans_name}, {configuration}: {REASON} Write a plans copy with z-score: {command}"


def write_zscore_plans(
    dataset_name: str,
    base_plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    new_plans_name: str | None = None,
) -> Path:
    """Write a plans copy with z-score for every channel with CT normalisation, and its own ``data_identifier``.

    Args:
        new_plans_name: default ``<base>_zscore``.

    Raises:
        OptionError: no channel has CT normalisation, or the name cannot be used.
        OutputError, NotPreprocessedError, UnknownConfigurationError, DatasetNotFoundError, EnvironmentNotSetError
    """
    dataset = open_planned_dataset(dataset_name, configuration, base_plans_name)
    schemes = dataset.configuration.normalization_schemes
    if CT not in schemes:
        raise OptionError(
            f"{base_plans_name}, {configuration} of {dataset.name} normalises with {', '.join(schemes)}, not with "
            f"{CT}. No change is needed: train with these plans."
        )
    changes = {"normalization_schemes": [ZSCORE if scheme == CT else scheme for scheme in schemes]}
    name = new_plans_name or f"{base_plans_name}_zscore"
    return write_plans_copy(dataset.name, base_plans_name, name, configuration, changes=changes)
