"""Pre-training: ``pretrain``, the options of the loop and of every method. Importing this package imports no torch.

from nnunet_invariance.pretraining import AliceOptions, LoopOptions, pretrain

path = pretrain("alice", "Dataset004_Hippocampus", options=AliceOptions(mask_ratio=0.6), loop=LoopOptions(epochs=50))
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.pretraining.engine.loop import PretrainingStopped as PretrainingStopped
    from nnunet_invariance.pretraining.engine.method import Method as Method
    from nnunet_invariance.pretraining.engine.method import NetworkPreset as NetworkPreset
    from nnunet_invariance.pretraining.engine.method import Setup as Setup
    from nnunet_invariance.pretraining.engine.method import StepOutput as StepOutput
    from nnunet_invariance.pretraining.engine.options import LoopOptions as LoopOptions
    from nnunet_invariance.pretraining.engine.options import MethodOptions as MethodOptions
    from nnunet_invariance.pretraining.engine.run import pretrain as pretrain
    from nnunet_invariance.pretraining.engine.run import pretrain_without_dataset as pretrain_without_dataset
    from nnunet_invariance.pretraining.methods.alice_options import AliceOptions as AliceOptions
    from nnunet_invariance.pretraining.methods.anatomix import AnatomixPretrainingOptions as AnatomixPretrainingOptions
    from nnunet_invariance.pretraining.methods.dense import DenseOptions as DenseOptions
    from nnunet_invariance.pretraining.methods.mae import MAEOptions as MAEOptions
    from nnunet_invariance.pretraining.methods.puir import PUIROptions as PUIROptions
    from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslationOptions as PUIRTranslationOptions
    from nnunet_invariance.pretraining.methods.sam import SAMOptions as SAMOptions

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "engine.loop": ("PretrainingStopped",),
        "engine.method": (
            "Method",
            "NetworkPreset",
            "Setup",
            "StepOutput",
        ),
        "engine.options": (
            "LoopOptions",
            "MethodOptions",
        ),
        "engine.run": (
            "pretrain",
            "pretrain_without_dataset",
        ),
        "methods.alice_options": ("AliceOptions",),
        "methods.anatomix": ("AnatomixPretrainingOptions",),
        "methods.dense": ("DenseOptions",),
        "methods.mae": ("MAEOptions",),
        "methods.puir": ("PUIROptions",),
        "methods.puir_translation": ("PUIRTranslationOptions",),
        "methods.sam": ("SAMOptions",),
    },
)
