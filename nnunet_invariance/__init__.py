"""Pre-training and trainers for nnU-Net v2 that learn invariant representations."""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

# In a checkout, the folders `trainers/` and `plans/` are next to this package; in an installation they are inside. With
# the checkout on the package's search path, `nnunet_invariance.trainers` works in both.
_package = os.path.dirname(os.path.abspath(__file__))
_checkout = os.path.dirname(_package)
if not os.path.isdir(os.path.join(_package, "trainers")) and os.path.isfile(
    os.path.join(_checkout, "trainers", "__init__.py")
):
    __path__.append(_checkout)
del _package, _checkout
