"""Importer of the released transformer of anatomix: it recognises the file and refuses it with the reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.weights.importers.network import without_wrappers

DESCRIPTION = "the anatomix transformer 'anatomix-dev-vit' of 26.2 million parameters"
KEYS = ("register_tokens", "eva.blocks.0.attn.q_norm.", "eva.blocks.0.attn.k_norm.", "eva.pos_embed")
#: Reason why our trainers cannot use it, for ``weights inspect``.
UNUSABLE = (
    "a transformer without stages, which works at patches of 128 voxels only and normalises queries and keys, as "
    "nnU-Net's own transformers do not; our trainers need an encoder with stages. Use 'anatomix' or 'anatomix-dev'"
)


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a file has register tokens and normalised queries and keys."""
    state = without_wrappers(content)
    return all(any(str(key).startswith(own) for key in state) for own in KEYS)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> NoReturn:
    """Refuse the file.

    Raises:
        WeightsIncompatibleError: always, with the reason.
    """
    raise WeightsIncompatibleError(f"{path} is {DESCRIPTION}: {UNUSABLE}.")
