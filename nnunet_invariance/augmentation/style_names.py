"""Names of the style interventions; this module imports none of them, so that options can use the names cheaply."""

from typing import Literal, TypeAlias

#: Keys of :data:`nnunet_invariance.augmentation.interventions.INTERVENTIONS`.
StyleName: TypeAlias = Literal["mixed", "gin", "gin_ipa", "randconv", "slaug", "gmm", "clusters"]
