"""PUIR's modality translation: predict images of missing modalities from the available ones.

from nnunet_invariance.modality_translation import load_translator
translator = load_translator(planned, device="cpu")        # an nnunet.planned_dataset.PlannedDataset
images = translator.predict({0: "case_0000.nii.gz"})       # (C, *spatial), raw intensities
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.modality_translation.checkerboard import nyquist_peak as nyquist_peak
    from nnunet_invariance.modality_translation.evaluate import evaluate_translation as evaluate_translation
    from nnunet_invariance.modality_translation.metrics import plain_scores as plain_scores
    from nnunet_invariance.modality_translation.metrics import release_scores as release_scores
    from nnunet_invariance.modality_translation.predict import translate_folder as translate_folder
    from nnunet_invariance.modality_translation.train import train_translator as train_translator
    from nnunet_invariance.modality_translation.translator import ModalityTranslator as ModalityTranslator
    from nnunet_invariance.modality_translation.translator import load_translator as load_translator

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checkerboard": ("nyquist_peak",),
        "evaluate": ("evaluate_translation",),
        "metrics": ("plain_scores", "release_scores"),
        "predict": ("translate_folder",),
        "train": ("train_translator",),
        "translator": ("ModalityTranslator", "load_translator"),
    },
)
