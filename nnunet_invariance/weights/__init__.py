"""Pre-trained weights: checkpoint files, transfer into a network, import from and export to other tools.

from nnunet_invariance.weights import load_pretrained
report = load_pretrained(network, "checkpoint_final.safetensors")
print(report.to_text())
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint, read_metadata, save_checkpoint
    from nnunet_invariance.weights.foreign import open_foreign
    from nnunet_invariance.weights.importers.importing import import_foreign
    from nnunet_invariance.weights.inspection import CheckpointInfo, inspect, list_weights
    from nnunet_invariance.weights.locate import find_weights
    from nnunet_invariance.weights.model_card import export_card
    from nnunet_invariance.weights.nnssl_export import export_nnssl
    from nnunet_invariance.weights.nnunet_export import export_nnunet
    from nnunet_invariance.weights.transfer import can_load, load_pretrained
    from nnunet_invariance.weights.transfer_report import TransferReport

_MODULES = {
    "checkpoint": ("Checkpoint", "load_checkpoint", "read_metadata", "save_checkpoint"),
    "nnunet_export": ("export_nnunet",),
    "nnssl_export": ("export_nnssl",),
    "foreign": ("open_foreign",),
    "importers.importing": ("import_foreign",),
    "inspection": ("CheckpointInfo", "inspect", "list_weights"),
    "locate": ("find_weights",),
    "model_card": ("export_card",),
    "transfer": ("can_load", "load_pretrained"),
    "transfer_report": ("TransferReport",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "TransferReport",
    "can_load",
    "export_card",
    "export_nnssl",
    "export_nnunet",
    "find_weights",
    "import_foreign",
    "inspect",
    "list_weights",
    "load_checkpoint",
    "load_pretrained",
    "open_foreign",
    "read_metadata",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that importing this package does not import torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
