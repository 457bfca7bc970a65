"""Diffusion path of ICMSeg (arXiv 2411.05223): slices, DreamBooth, ControlNet, generated views and their preprocessing.

It needs the packages of the extra ``diffusion``; they are imported when one of the names below is first used.
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.diffusion.controlnet import train_controlnet as train_controlnet
    from nnunet_invariance.diffusion.dreambooth import train_dreambooth as train_dreambooth
    from nnunet_invariance.diffusion.generate import generate_views as generate_views
    from nnunet_invariance.diffusion.options import SamplingOptions as SamplingOptions
    from nnunet_invariance.diffusion.options import TrainingOptions as TrainingOptions
    from nnunet_invariance.diffusion.options import ViewOptions as ViewOptions
    from nnunet_invariance.diffusion.preprocess import preprocess_views as preprocess_views
    from nnunet_invariance.diffusion.slices import make_slices as make_slices

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "controlnet": ("train_controlnet",),
        "dreambooth": ("train_dreambooth",),
        "generate": ("generate_views",),
        "options": ("SamplingOptions", "TrainingOptions", "ViewOptions"),
        "preprocess": ("preprocess_views",),
        "slices": ("make_slices",),
    },
)
