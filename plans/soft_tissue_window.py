"""Intensity schemes that nnU-Net's preprocessor finds by name."""

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

WINDOW = (-125.0, 225.0)  # Hounsfield units


class SoftTissueWindowNormalization(ImageNormalization):
    """CT clipped to [-125, 225] HU and scaled to [0, 1], as Alice's release reads it (arXiv 2302.05615)."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Same shape, in the target type; ``seg`` is not used."""
        low, high = WINDOW
        return ((np.clip(image.astype(np.float64), low, high) - low) / (high - low)).astype(self.target_dtype)
