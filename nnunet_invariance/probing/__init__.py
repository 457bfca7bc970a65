"""Linear probes: how well a linear classifier of frozen features segments a data set.

>>> from nnunet_invariance.probing import ProbeOptions
>>> ProbeOptions(shots=(1,)).draws
3
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.probing.curve import ProbeCurve as ProbeCurve
    from nnunet_invariance.probing.linear import LinearProbe as LinearProbe
    from nnunet_invariance.probing.linear import fit_linear_probe as fit_linear_probe
    from nnunet_invariance.probing.protocol import ProbeOptions as ProbeOptions
    from nnunet_invariance.probing.protocol import ProbeResult as ProbeResult
    from nnunet_invariance.probing.protocol import probe as probe
    from nnunet_invariance.probing.run import run_probe as run_probe

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "curve": ("ProbeCurve",),
        "linear": ("LinearProbe", "fit_linear_probe"),
        "protocol": ("ProbeOptions", "ProbeResult", "probe"),
        "run": ("run_probe",),
    },
)
