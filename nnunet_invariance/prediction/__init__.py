"""Prediction with trained nnU-Net models: mean over styles, adaptation to test images, and a check of intensities.

from nnunet_invariance.prediction import StylePredictor, open_model, predict_folder
predictor = open_model(StylePredictor(styles=4, device=torch.device("cpu")), model_folder)
predict_folder(predictor, images, out)
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.prediction.adaptation import AdaptationOptions as AdaptationOptions
    from nnunet_invariance.prediction.adaptation import AdaptationReport as AdaptationReport
    from nnunet_invariance.prediction.adaptation import adapt_model as adapt_model
    from nnunet_invariance.prediction.intensity_shift import shift_warnings as shift_warnings
    from nnunet_invariance.prediction.intensity_shift import training_intensities as training_intensities
    from nnunet_invariance.prediction.model import predict_folder as predict_folder
    from nnunet_invariance.prediction.opening import open_model as open_model
    from nnunet_invariance.prediction.styles import StylePredictor as StylePredictor

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "adaptation": ("AdaptationOptions", "AdaptationReport", "adapt_model"),
        "intensity_shift": ("shift_warnings", "training_intensities"),
        "model": ("predict_folder",),
        "opening": ("open_model",),
        "styles": ("StylePredictor",),
    },
)
