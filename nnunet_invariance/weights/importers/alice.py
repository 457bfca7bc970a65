"""Importer of backbones of Alice's release: training checkpoints, and the output of its extraction script.

A training checkpoint contains ``student`` and ``teacher``. The script writes the tensors of the student to the top
level beside an empty ``state_dict``, and those of the teacher into ``state_dict``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.networks.architectures.nnformer import NNFORMER, SMALLEST
from nnunet_invariance.weights.importers.network import ForeignNetwork, facts_without_plans
from nnunet_invariance.weights.trusted_architecture import architecture_of

DESCRIPTION = "a backbone of Alice's release (nnFormer): a training checkpoint, or the output of its extraction script"
KEYS = ("model_down.",)
CITATION = (
    "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D "
    "Medical Image Analysis, ICCV 2023, arXiv 2302.05615"
)
ENCODER = "model_down."
NOT_USED = (
    "decoder.",
    "final.",
    "head.",
    "model_down.mask_token",
)  # its own decoder and heads, which its training never uses
INDEX, TABLE = "relative_position_index", "relative_position_bias_table"


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    return any(key.startswith(ENCODER) for key in _state(content))


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The encoder of the file; ``plans`` and ``configuration`` are ignored.

    Tables and indices of relative positions come from the file, because in the release several offsets share a row.
    The release samples its table of absolute positions at every start and never saves it; ours starts at 0. The
    importer reads the teacher of a training checkpoint, or the student if there is none; ``notes`` say which.

    Raises:
        CheckpointCorruptError: another layout.
    """
    state, side = _state(content), _side(content)
    own = {_own_name(path, name): tensor for name, tensor in state.items()}
    _check_indices(path, own)
    width = own["encoder.norms.0.weight"].shape[0]
    channels = own["encoder.patch_embed.proj1.conv1.weight"].shape[1]
    own["encoder.position"] = torch.zeros(1, width, *[SMALLEST // 2] * 3)
    arguments = {
        "n_stages": 5,
        "features_per_stage": [width, *[width * 2**stage for stage in range(4)]],
        "strides": [[1] * 3, *[[2] * 3] * 4],
        "axes": [2, 1, 0],
    }
    entry = {"network_class_name": NNFORMER, "arch_kwargs": arguments, "_kw_requires_import": []}
    facts = facts_without_plans([SMALLEST] * 3, ["CT"] * channels, ["SoftTissueWindowNormalization"] * channels)
    notes = {"read": side} if side else {}
    architecture = architecture_of(path, entry, channels, 1)
    return ForeignNetwork(own, architecture, facts, citation=CITATION, method="alice", notes=notes)


def _side(content: Mapping[str, Any]) -> str | None:
    """The network of a training checkpoint that the importer reads; None for other files."""
    return next((side for side in ("teacher", "student") if isinstance(content.get(side), Mapping)), None)


def _state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of any layout, without the prefixes of some layouts."""
    nested = content.get(_side(content) or "state_dict")
    box = nested if isinstance(nested, Mapping) and nested else content
    tensors = {str(key): value for key, value in box.items() if isinstance(value, Tensor)}
    return {key.removeprefix("module.").removeprefix("backbone."): value for key, value in tensors.items()}


def _own_name(path: Path, name: str) -> str:
    if name.startswith(NOT_USED):
        return name
    if not name.startswith(ENCODER):
        msg = f"{path} cannot be imported: it contains {name}, which is in neither layout of the extraction script. "
        raise CheckpointCorruptError(msg + "Use the file as the script wrote it.")
    rest = name.removeprefix(ENCODER)
    stage = rest.removeprefix("norm")[:1]
    return f"encoder.norms.{stage}{rest[5:]}" if rest.startswith("norm") and stage.isdigit() else f"encoder.{rest}"


def _check_indices(path: Path, own: Mapping[str, Tensor]) -> None:
    """Check the indices now, because an index outside its table would be a device error in training."""
    for name in (n for n in own if n.endswith(INDEX)):
        index, table = own[name], own.get(name.replace(INDEX, TABLE))
        if table is not None and (index.is_floating_point() or index.min() < 0 or index.max() >= len(table)):
            msg = f"{path} cannot be imported: {name} does not point into its table of {len(table)} rows. "
            raise CheckpointCorruptError(msg + "Use the file as the script wrote it.")
