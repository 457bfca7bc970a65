"""nnU-Net's training augmentation on the device of the network, for a whole batch at once.

:func:`device_form` reads nnU-Net's own pipeline, so that all probabilities and ranges are those of the installed
version. Parameters are sampled on the CPU: the host knows which samples change, and never waits for the device.
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.augmentation.on_device.augmentation import DeviceAugmentation as DeviceAugmentation
    from nnunet_invariance.augmentation.on_device.translation import RawPatches as RawPatches
    from nnunet_invariance.augmentation.on_device.translation import device_form as device_form

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {"augmentation": ("DeviceAugmentation",), "translation": ("RawPatches", "device_form")},
)
