"""For `nnUNet_extTrainer`: resolves every trainer of the package, where the hook of `_discovery` is switched off.

nnU-Net drops this module from `sys.modules` after each look-up; the classes live in the installed package and stay.
"""

from nnunet_invariance.trainers import __getattr__ as __getattr__
