"""Normalisation of CT to [0, 1] after clipping to a window."""

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RescaleTo01Normalization

#: Windows in Hounsfield units: soft tissue, and everything from air to dense bone. Both are from the anatomix code.
SOFT_TISSUE, WHOLE = (-450.0, 450.0), (-1024.0, 1024.0)


class CTWindowTo01Normalization(RescaleTo01Normalization):
    """Clip to a window of Hounsfield units, then map minimum and maximum of the volume to 0 and 1.

    The window is the one of soft tissue if it contains the labelled voxels of the training set (their 0.5 and 99.5
    percentiles, as nnU-Net measures them), and the wide one otherwise, for example for lungs or bones. Without a
    window, metal and air would take up most of the range.

    >>> properties = {"percentile_00_5": -50.0, "percentile_99_5": 300.0}
    >>> scheme = CTWindowTo01Normalization(use_mask_for_norm=False, intensityproperties=properties)
    >>> scheme.run(np.array([-3000.0, 0.0, 3000.0])).tolist()
    [0.0, 0.5, 1.0]
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Map (z, y, x) in Hounsfield units to [0, 1]."""
        low, high = (self.intensityproperties[key] for key in ("percentile_00_5", "percentile_99_5"))
        window = SOFT_TISSUE if low >= SOFT_TISSUE[0] and high <= SOFT_TISSUE[1] else WHOLE
        return super().run(np.clip(image, *window), seg)
