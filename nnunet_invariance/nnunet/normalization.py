"""nnU-Net's intensity normalisation of single channels."""

import nnunetv2
import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


def normalizer(plans: PlansManager, configuration: ConfigurationManager, channel: int) -> ImageNormalization:
    """Create the normalisation that nnU-Net's preprocessing applies to a channel."""
    scheme = configuration.normalization_schemes[channel]
    folder = f"{nnunetv2.__path__[0]}/preprocessing/normalization"
    kind = find_class_by_name.recursive_find_python_class(folder, scheme, "nnunetv2.preprocessing.normalization")
    return kind(
        use_mask_for_norm=configuration.use_mask_for_norm[channel],
        intensityproperties=plans.foreground_intensity_properties_per_channel[str(channel)],
    )


def empty_slots(plans: PlansManager, configuration: ConfigurationManager) -> list[float]:
    """Value of an image of zeros after normalisation, per channel; it is not 0 with CT normalisation."""
    zeros, mask = np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.int8)
    channels = range(len(configuration.normalization_schemes))
    return [float(normalizer(plans, configuration, c).run(zeros.copy(), mask).flat[0]) for c in channels]
