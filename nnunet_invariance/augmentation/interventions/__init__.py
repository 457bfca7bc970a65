"""Style interventions: each changes the appearance of an image and keeps its anatomy and its labels.

styled = GIN()(image, generator=generator)                # sample and apply
params = GIN().sample(Domain(image.shape, classes), generator)
styled = GIN().apply(image, labels, params)               # deterministic for given parameters
"""

from typing import Any

from nnunet_invariance.augmentation.interventions.base import Domain, Intervention, TissueIntervention, match_statistics
from nnunet_invariance.augmentation.interventions.clusters import Clusters
from nnunet_invariance.augmentation.interventions.gin import GIN
from nnunet_invariance.augmentation.interventions.gmm import GMM
from nnunet_invariance.augmentation.interventions.ipa import IPA
from nnunet_invariance.augmentation.interventions.mixed import Mixed
from nnunet_invariance.augmentation.interventions.randconv import RandConv
from nnunet_invariance.augmentation.interventions.slaug import SLAug

__all__ = [
    "GIN",
    "GMM",
    "INTERVENTIONS",
    "IPA",
    "Clusters",
    "Domain",
    "Intervention",
    "Mixed",
    "RandConv",
    "SLAug",
    "TissueIntervention",
    "match_statistics",
]

#: Classes by the names of the plans option ``style``. ``slaug`` is the local form: the fusion needs a network.
INTERVENTIONS: dict[str, type[Intervention[Any]]] = {
    "mixed": Mixed,
    "gin": GIN,
    "gin_ipa": IPA,
    "randconv": RandConv,
    "slaug": SLAug,
    "gmm": GMM,
    "clusters": Clusters,
}
