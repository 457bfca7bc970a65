"""Pre-trained weights: checkpoint files, transfer into a network, import from and export to other tools.

from nnunet_invariance.weights import load_pretrained
report = load_pretrained(network, "checkpoint_final.safetensors")
print(report.to_text())
"""

from nnunet_invariance.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
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
    },
)
