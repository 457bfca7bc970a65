"""What nnU-Net's normalisation makes of intensities, channel by channel."""

import nnunetv2
import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


def normalizer(plans: PlansManager, configuration: ConfigurationManager, channel: int) -> ImageNormalization:
    """The normalisation that preprocessing runs on one channel."""
    scheme = configuration.normalization_schemes[channel]
    folder = f"{nnunetv2.__path__[0]}/preprocessing/normalization"
    kind = find_class_by_name.recursive_find_python_class(folder, scheme, "nnunetv2.preprocessing.normalization")
    return kind(
        use_mask_for_norm=configuration.use_mask_for_norm[channel],
        intensityproperties=plans.foreground_intensity_properties_per_channel[str(channel)],
    )


def empty_slots(plans: PlansManager, configuration: ConfigurationManager) -> list[float]:
    """What an image of zeros is after preprocessing, for each channel: 0, but not so under CT normalisation."""
    zeros, mask = np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.int8)
    channels = range(len(configuration.normalization_schemes))
    return [float(normalizer(plans, configuration, c).run(zeros.copy(), mask).flat[0]) for c in channels]
