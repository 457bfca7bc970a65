"""Images in [0, 1] for networks that were trained on such, CT after a window."""

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RescaleTo01Normalization

#: Hounsfield units: soft tissue, and everything from air to dense bone. Both are windows of anatomix's authors.
SOFT_TISSUE, WHOLE = (-450.0, 450.0), (-1024.0, 1024.0)


class CTWindowTo01Normalization(RescaleTo01Normalization):
    """Clip to a window of Hounsfield units, then minimum and maximum of the volume to 0 and 1.

    The window is that of soft tissue where the labelled voxels of the training set lie in it (their 0.5 and 99.5
    percentiles, as nnU-Net measures them), and the whole one otherwise, as for lungs or bones. Without a window, metal
    and air would take up most of the range.
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """(z, y, x) in Hounsfield units to [0, 1]."""
        low, high = (self.intensityproperties[key] for key in ("percentile_00_5", "percentile_99_5"))
        window = SOFT_TISSUE if low >= SOFT_TISSUE[0] and high <= SOFT_TISSUE[1] else WHOLE
        return super().run(np.clip(image, *window), seg)
