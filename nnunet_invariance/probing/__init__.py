"""Linear probes: what the frozen features of a network know about the labels of a data set."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_invariance.probing.hypercolumns import HypercolumnMaps, compute_hypercolumns, sample_hypercolumns
    from nnunet_invariance.probing.linear import LinearProbe, fit_linear_probe
    from nnunet_invariance.probing.protocol import ProbeOptions, probe

_MODULES = {
    "HypercolumnMaps": "hypercolumns",
    "LinearProbe": "linear",
    "ProbeOptions": "protocol",
    "fit_linear_probe": "linear",
    "compute_hypercolumns": "hypercolumns",
    "probe": "protocol",
    "sample_hypercolumns": "hypercolumns",
}
__all__ = [
    "HypercolumnMaps",
    "LinearProbe",
    "ProbeOptions",
    "compute_hypercolumns",
    "fit_linear_probe",
    "probe",
    "sample_hypercolumns",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
