"""Compare trainers through nnU-Net's own commands, and compute statistics of scores.

`compare`, `mean_scores` and `rank` take arrays or data frames and need no environment variable of nnU-Net. The
protocols `few_shot`, `missing_modality` and `cross_modality` train, predict and score.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_invariance.evaluation.frames import compare, mean_scores, rank
    from nnunet_invariance.evaluation.protocols.cross_modality import cross_modality
    from nnunet_invariance.evaluation.protocols.few_shot import few_shot
    from nnunet_invariance.evaluation.protocols.missing_modality import missing_modality
    from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
    from nnunet_invariance.evaluation.report.page import write_report

_MODULES = {
    "ProtocolOptions": "protocols.protocol",
    "compare": "frames",
    "cross_modality": "protocols.cross_modality",
    "few_shot": "protocols.few_shot",
    "mean_scores": "frames",
    "missing_modality": "protocols.missing_modality",
    "rank": "frames",
    "write_report": "report.page",
}

__all__ = [
    "ProtocolOptions",
    "compare",
    "cross_modality",
    "few_shot",
    "mean_scores",
    "missing_modality",
    "rank",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
