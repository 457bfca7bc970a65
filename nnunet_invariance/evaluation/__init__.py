"""Compare trainers through nnU-Net's own commands, and compute statistics of scores.

`compare`, `mean_scores` and `rank` take arrays or data frames and need no environment variable of nnU-Net. The
protocols `few_shot`, `missing_modality` and `cross_modality` train, predict and score.
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.evaluation.frames import compare as compare
    from nnunet_invariance.evaluation.frames import mean_scores as mean_scores
    from nnunet_invariance.evaluation.frames import rank as rank
    from nnunet_invariance.evaluation.protocols.cross_modality import cross_modality as cross_modality
    from nnunet_invariance.evaluation.protocols.few_shot import few_shot as few_shot
    from nnunet_invariance.evaluation.protocols.missing_modality import missing_modality as missing_modality
    from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions as ProtocolOptions
    from nnunet_invariance.evaluation.report.page import write_report as write_report

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "frames": (
            "compare",
            "mean_scores",
            "rank",
        ),
        "protocols.cross_modality": ("cross_modality",),
        "protocols.few_shot": ("few_shot",),
        "protocols.missing_modality": ("missing_modality",),
        "protocols.protocol": ("ProtocolOptions",),
        "report.page": ("write_report",),
    },
)
