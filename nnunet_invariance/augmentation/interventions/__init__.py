"""Interventions on style: each changes how an image looks and leaves what it shows, and its labels, alone."""

from nnunet_invariance.augmentation.interventions.base import Intervention
from nnunet_invariance.augmentation.interventions.clusters import apply_clusters, sample_clusters
from nnunet_invariance.augmentation.interventions.gin import apply_gin, sample_gin
from nnunet_invariance.augmentation.interventions.gmm import apply_gmm, sample_gmm
from nnunet_invariance.augmentation.interventions.ipa import apply_gin_ipa, sample_gin_ipa
from nnunet_invariance.augmentation.interventions.mixed import apply_mixed, sample_mixed
from nnunet_invariance.augmentation.interventions.randconv import apply_randconv, sample_randconv
from nnunet_invariance.augmentation.interventions.slaug import apply_local, sample_slaug

#: By the names of the option ``style``. ``slaug`` is its local form: fusion needs the gradient of a network.
INTERVENTIONS = {
    "mixed": Intervention(sample_mixed, apply_mixed),
    "gin": Intervention(sample_gin, apply_gin),
    "gin_ipa": Intervention(sample_gin_ipa, apply_gin_ipa),
    "randconv": Intervention(sample_randconv, apply_randconv),
    "slaug": Intervention(sample_slaug, apply_local),
    "gmm": Intervention(sample_gmm, apply_gmm),
    "clusters": Intervention(sample_clusters, apply_clusters),
}
