"""Importer of a state dict of an encoder without metadata; the user gives the plans of its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.weights.importers.network import ForeignNetwork, without_wrappers
from nnunet_invariance.weights.importers.nnunet import from_plans
from nnunet_invariance.weights.transfer_report import ENCODER
from nnunet_invariance.weights.trusted_architecture import plain

DESCRIPTION = "a state dict of an nnU-Net encoder without metadata (give its plans with --plans)"
KEYS = ("encoder.stages.", "stages.", "encoder.stem.", "stem.")
BOXES = ("state_dict", "model_state_dict", "model")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    state = _state(content)
    return bool(state) and any(str(key).startswith(("encoder.stages.", "stages.")) for key in state)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The encoder of the file under these plans.

    Raises:
        WeightsIncompatibleError: no plans given, or another network. CheckpointCorruptError: plans that lack something.
    """
    if plans is None:
        msg = f"{path} contains tensors only and does not describe its network. "
        raise WeightsIncompatibleError(msg + "Give the plans of its training (--plans FILE -c CONFIGURATION).")
    state = _state(content)
    if not any(key.startswith(ENCODER) for key in state):
        state = {ENCODER + key: tensor for key, tensor in state.items()}
    return from_plans(path, state, plain(path, plans), configuration, [])


def _state(content: Mapping[str, Any]) -> dict[str, Any]:
    box = next((content[name] for name in BOXES if isinstance(content.get(name), Mapping)), content)
    return without_wrappers({str(key): value for key, value in box.items() if isinstance(value, Tensor)})
