"""Pre-training: ``pretrain``, the options of the loop and of every method. Importing this package imports no torch.

from nnunet_invariance.pretraining import AliceOptions, LoopOptions, pretrain

path = pretrain("alice", "Dataset004_Hippocampus", options=AliceOptions(mask_ratio=0.6), loop=LoopOptions(epochs=50))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_invariance.pretraining.engine.loop import PretrainingStopped
    from nnunet_invariance.pretraining.engine.method import Method, NetworkPreset, Setup, StepOutput
    from nnunet_invariance.pretraining.engine.options import LoopOptions, MethodOptions
    from nnunet_invariance.pretraining.engine.run import pretrain, pretrain_without_dataset
    from nnunet_invariance.pretraining.methods.alice_options import AliceOptions
    from nnunet_invariance.pretraining.methods.anatomix import AnatomixPretrainingOptions
    from nnunet_invariance.pretraining.methods.dense import DenseOptions
    from nnunet_invariance.pretraining.methods.mae import MAEOptions
    from nnunet_invariance.pretraining.methods.puir import PUIROptions
    from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslationOptions
    from nnunet_invariance.pretraining.methods.sam import SAMOptions

_MODULES = {
    "AliceOptions": "methods.alice_options",
    "AnatomixPretrainingOptions": "methods.anatomix",
    "DenseOptions": "methods.dense",
    "LoopOptions": "engine.options",
    "MAEOptions": "methods.mae",
    "Method": "engine.method",
    "MethodOptions": "engine.options",
    "NetworkPreset": "engine.method",
    "PUIROptions": "methods.puir",
    "PUIRTranslationOptions": "methods.puir_translation",
    "PretrainingStopped": "engine.loop",
    "SAMOptions": "methods.sam",
    "Setup": "engine.method",
    "StepOutput": "engine.method",
    "pretrain": "engine.run",
    "pretrain_without_dataset": "engine.run",
}

__all__ = [
    "AliceOptions",
    "AnatomixPretrainingOptions",
    "DenseOptions",
    "LoopOptions",
    "MAEOptions",
    "Method",
    "MethodOptions",
    "NetworkPreset",
    "PUIROptions",
    "PUIRTranslationOptions",
    "PretrainingStopped",
    "SAMOptions",
    "Setup",
    "StepOutput",
    "pretrain",
    "pretrain_without_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
