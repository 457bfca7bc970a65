"""Importers of checkpoints of other tools: one module per format, which is recognised by its keys."""

from nnunet_invariance.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "importing": ("import_foreign", "read_network", "recognise"),
        "network": ("ForeignNetwork",),
        "registry": ("IMPORTERS", "Importer", "get_importer"),
    },
)
