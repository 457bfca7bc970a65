"""Importer of the released U-Nets of anatomix (arXiv 2411.02372): a state dict without metadata, checked key by key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs, design_of, own_name
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.weights.importers.network import ForeignNetwork, without_wrappers
from nnunet_invariance.weights.transfer_report import shortened

CITATION = "Dey et al., General-Purpose Biomedical Volume Representations using Randomized Synthesis, arXiv 2411.02372"
PATCH = [128, 128, 128]
SIZES = {"anatomix": "5.9", "anatomix-dev": "94.4"}
_LAYER = re.compile(r"model\.\d+\.\w+")


@dataclass(frozen=True)
class ReleasedUNet:
    """Importer of the files of one variant.

    >>> ReleasedUNet("anatomix").KEYS
    ('model.0.weight', 'model.65.weight')
    """

    variant: str

    @property
    def DESCRIPTION(self) -> str:
        """Description of the files in messages."""
        return f"the anatomix U-Net {self.variant!r} of {SIZES[self.variant]} million parameters"

    @property
    def KEYS(self) -> tuple[str, ...]:
        """Names of the first and last kernel."""
        return "model.0.weight", f"model.{9 + 14 * design_of(self.variant).levels}.weight"

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """Whether all keys are layers of a flat list, with batch norm if and only if the variant has it."""
        state = without_wrappers(content)
        layers = "model.0.weight" in state and all(_LAYER.fullmatch(str(key)) for key in state)
        return layers and ("model.1.running_mean" in state) == design_of(self.variant).batch_norm

    def read(
        self, path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str
    ) -> ForeignNetwork:
        """The U-Net of the file; ``plans`` and ``configuration`` are ignored.

        Raises:
            WeightsIncompatibleError: a key or a shape differs from the variant.
        """
        state = without_wrappers(content)
        self._check(path, state)
        facts: dict[str, Any] = {
            "dataset_name": "synthetic volumes",
            "plans_name": "none",
            "configuration": "3d_fullres",
            "data_identifier": "none",
            "spacing": None,
            "patch_size": PATCH,
            "normalization_schemes": ["RescaleTo01Normalization"],
            "channel_names": ["any"],
            "plans": {},
        }
        own = {own_name(key, self.variant): value for key, value in state.items()}
        architecture = Architecture(NETWORK, arch_kwargs(self.variant), (), 1, 1)
        notes = {"variant": self.variant}
        return ForeignNetwork(own, architecture, facts, citation=CITATION, method="anatomix", notes=notes)

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        with torch.device("meta"):
            layers = design_of(self.variant).layers()
        wanted = {
            f"model.{index}.{name}": tensor
            for index, layer in enumerate(layers)
            for name, tensor in layer.state_dict().items()
        }
        lines = [f"  {key}: not in the file" for key in wanted if key not in state]
        lines += [f"  {key}: not in the U-Net" for key in state if key not in wanted]
        for key, tensor in wanted.items():
            found = state.get(key)
            if key in state and not (isinstance(found, Tensor) and found.shape == tensor.shape):
                what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                lines.append(f"  {key}: {what} in the file, {list(tensor.shape)} in the U-Net")
        if lines:
            first = state["model.0.weight"]
            width = first.shape[0] if isinstance(first, Tensor) and first.ndim else 0
            raise WeightsIncompatibleError(
                f"{path} is similar to {self.DESCRIPTION}, but differs from it ({len(state)} keys instead of "
                f"{len(wanted)}; {width} channels at full resolution):\n" + "\n".join(shortened(lines)) + "\n"
                "Files published as anatomix-dev until July 2026 have 20 channels, and their pooling is not known "
                "here. Use the file as it is published now."
            )


ANATOMIX = ReleasedUNet("anatomix")
ANATOMIX_DEV = ReleasedUNet("anatomix-dev")
