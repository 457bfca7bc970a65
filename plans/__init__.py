"""The options block of a plans file, and copies of plans files. Modules are imported when needed."""

import importlib
from typing import Any

_MODULES = {
    "nnunet_invariance.plans.options": (
        "AnatomixTrainerOptions",
        "AuxiliaryLossOptions",
        "BaselineOptions",
        "ChannelDropoutOptions",
        "DenseContrastOptions",
        "DenseTrainerOptions",
        "ICMSegTrainerOptions",
        "PUIRTrainerOptions",
        "PretrainedOptions",
        "TransferOptions",
        "read_options",
    ),
    "nnunet_invariance.plans.copies": ("FittedPlans", "preprocessing_command", "write_plans_copy"),
    "nnunet_invariance.plans.fit": ("fit_plans_to_checkpoint",),
    "nnunet_invariance.plans.nnformer": ("write_nnformer_plans",),
    "nnunet_invariance.plans.zscore": ("write_zscore_plans",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
