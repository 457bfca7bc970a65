"""Importer of files of VoCo (arXiv 2402.17300): a SwinUNETR of version 2, alone or as student and teacher."""

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
#: Prefixes of the trained network, the first hit wins; the teacher is its moving average.
PREFIXES = ("student.", "backbone.", "")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content: MONAI's keys, and the blocks in front of the stages."""
    state = _tensors(content)
    return has_transformer(state) and any(key.startswith(f"{TRANSFORMER}layers1c.") for key in state)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The student of the file; ``plans`` and ``configuration`` are ignored.

    Raises:
        WeightsIncompatibleError: 2-D, or with more blocks than ours.
    """
    return swin_network(path, _tensors(content), CITATION)


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(content.get("student"), Mapping):  # one complete module per key
        content = content["student"]
    state = monai_swin.tensors_of(content)
    prefix = next(p for p in PREFIXES if p == "" or any(key.startswith(p) for key in state))
    inside = without_wrappers({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    beside = {key: value for key, value in state.items() if not key.startswith(prefix)}
    return {**beside, **{spelled(key): value for key, value in inside.items()}}
