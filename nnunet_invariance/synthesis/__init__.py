"""Randomised synthesis (arXiv 2411.02372): label maps from shape templates, and random appearances of them.

>>> from nnunet_invariance.synthesis import SynthesisEngine
>>> labels, first, second = SynthesisEngine()(n=1, size=32, seed=0)
>>> labels.shape
torch.Size([1, 1, 32, 32, 32])
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.synthesis.engine import SynthesisEngine as SynthesisEngine
    from nnunet_invariance.synthesis.engine import SyntheticPairs as SyntheticPairs
    from nnunet_invariance.synthesis.options import SynthesisOptions as SynthesisOptions
    from nnunet_invariance.synthesis.templates import TemplateBank as TemplateBank
    from nnunet_invariance.synthesis.templates import read_templates as read_templates

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "engine": ("SynthesisEngine", "SyntheticPairs"),
        "options": ("SynthesisOptions",),
        "templates": ("TemplateBank", "read_templates"),
    },
)
