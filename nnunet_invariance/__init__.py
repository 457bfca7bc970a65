"""Pre-training and trainers for nnU-Net v2 that learn invariant representations."""

import os

__version__ = "0.1.0"

# In a checkout `trainers/` and `plans/` lie beside this folder; installed, they lie inside it. One more folder on the
# search path makes `nnunet_invariance.trainers` mean the same in both.
_package = os.path.dirname(os.path.abspath(__file__))
_checkout = os.path.dirname(_package)
if not os.path.isdir(os.path.join(_package, "trainers")) and os.path.isfile(
    os.path.join(_checkout, "trainers", "__init__.py")
):
    __path__.append(_checkout)
del _package, _checkout
