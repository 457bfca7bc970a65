"""Registration of two volumes, also across modalities, with ConvexAdam on MIND or learned features.

from nnunet_invariance.registration import RegistrationOptions, register
report = register("fixed.nii.gz", "moving.nii.gz", "out", RegistrationOptions(features="mind"))
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.registration.convex_adam import ConvexAdamOptions as ConvexAdamOptions
    from nnunet_invariance.registration.convex_adam import mind_ssc as mind_ssc
    from nnunet_invariance.registration.fields import jacobian as jacobian
    from nnunet_invariance.registration.fields import jacobian_statistics as jacobian_statistics
    from nnunet_invariance.registration.fields import warp as warp
    from nnunet_invariance.registration.network import FeatureNetwork as FeatureNetwork
    from nnunet_invariance.registration.network import load_feature_network as load_feature_network
    from nnunet_invariance.registration.options import RegistrationOptions as RegistrationOptions
    from nnunet_invariance.registration.pipeline import register as register

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "convex_adam": ("ConvexAdamOptions", "mind_ssc"),
        "fields": ("jacobian", "jacobian_statistics", "warp"),
        "network": ("FeatureNetwork", "load_feature_network"),
        "options": ("RegistrationOptions",),
        "pipeline": ("register",),
    },
)
