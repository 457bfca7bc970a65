"""Files of VoCo (arXiv 2402.17300): a SwinUNETR of version 2, alone or as student and teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_invariance.weights.importers import monai_swin
from nnunet_invariance.weights.importers.monai_swin import TRANSFORMER, has_transformer, spelled, swin_network
from nnunet_invariance.weights.importers.network import ForeignNetwork, without_wrappers

DESCRIPTION = "a SwinUNETR of VoCo"
KEYS = (*monai_swin.KEYS, "swinViT.layers1c.")
CITATION = "Wu et al., VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework, CVPR 2024, arXiv 2402.17300"
#: Where the network that was trained stands, first hit wins; the teacher is its moving average.
PLACES = ("student.", "backbone.", "")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a file has the keys of this source: MONAI's, and the blocks in front of the stages."""
    state = _tensors(content)
    return has_transformer(state) and any(key.startswith(f"{TRANSFORMER}layers1c.") for key in state)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The student of the file; ``plans`` and ``configuration`` are not needed.

    Raises:
        WeightsIncompatibleError: 2-D, or with more blocks than ours.
    """
    return swin_network(path, _tensors(content), CITATION)


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(content.get("student"), Mapping):  # whole modules, one a key
        content = content["student"]
    state = monai_swin.tensors_of(content)
    place = next(p for p in PLACES if p == "" or any(key.startswith(p) for key in state))
    inside = without_wrappers({k.removeprefix(place): v for k, v in state.items() if k.startswith(place)})
    beside = {key: value for key, value in state.items() if not key.startswith(place)}
    return {**beside, **{spelled(key): value for key, value in inside.items()}}
