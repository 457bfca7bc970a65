"""Normalisation of CT to a soft-tissue window; nnU-Net's preprocessor finds it by name."""

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

WINDOW = (-125.0, 225.0)  # Hounsfield units


class SoftTissueWindowNormalization(ImageNormalization):
    """Clip CT to [-125, 225] HU and scale it to [0, 1], as Alice's published code does (arXiv 2302.05615).

    >>> scheme = SoftTissueWindowNormalization(use_mask_for_norm=False, intensityproperties={})
    >>> scheme.run(np.array([-1000.0, 50.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Map an image in HU to [0, 1], same shape, in the target type; ``seg`` is not used."""
        low, high = WINDOW
        return ((np.clip(image.astype(np.float64), low, high) - low) / (high - low)).astype(self.target_dtype)
