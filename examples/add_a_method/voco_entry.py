"""The registry entry, which ``pyproject.toml`` offers as an entry point."""

from nnunet_invariance.registry import CONVOLUTIONAL, MethodEntry

ENTRY = MethodEntry(
    "voco",
    "voco_method",
    "VoCo",
    "2402.17300",
    "VoCoTrainer",
    "voco_trainer",
    networks=CONVOLUTIONAL,  # crops are smaller than the patch, which a planned transformer does not accept
)
