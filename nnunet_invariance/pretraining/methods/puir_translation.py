"""Modality transfer with PUIR: every modality from any that are there (arXiv 2411.06106)."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.options import count, number, text
from nnunet_invariance.errors import WeightsNotFoundError
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.engine.method import Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.methods.puir import PUIR, PUIROptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import FINAL
from nnunet_invariance.weights.modality_tables import in_channel_order
from nnunet_invariance.weights.transfer import check_method, load_pretrained

logger = logging.getLogger(__name__)

SCRATCH = "none"
#: Tensors of the reconstruction decoder with a row for each modality.
OUTPUTS = ("heads.decoder.output.weight", "heads.decoder.output.bias")


@dataclass(frozen=True)
class PUIRTranslationOptions(PUIROptions):
    """Options of ``translate train``: those of ``pretrain puir``, and two more.

    >>> PUIRTranslationOptions().sources
    1
    """

    sources: int = count(1, 1, doc="Single modalities per step from which the others are translated.")
    weight_translation: float = number(
        1.0, 0, math.inf, low_excluded=True, doc="Weight of the squared error of the translated modalities."
    )
    start: str = text(
        "", doc="Checkpoint of `pretrain puir`; empty: that of the same data set and plans; none: random weights."
    )


def find_start(folder: Path, start: str) -> Path:
    """The checkpoint of ``pretrain puir`` that a run in ``folder`` starts from; see :class:`PUIRTranslationOptions`.

    Raises:
        WeightsNotFoundError: there is no such file.
    """
    own = folder.with_name(folder.name.replace(PUIRTranslation.name, PUIR.name, 1)) / FINAL
    path = Path(start) if start else own
    if not path.is_file():
        raise WeightsNotFoundError(
            f"{path} does not exist; modality transfer starts from a finished pre-training. Run "
            f"`nnunet-invariance pretrain puir` with the same plans, or give --start FILE or --start {SCRATCH}."
        )
    return path


class PUIRTranslation(PUIR):
    r"""PUIR, whose planned decoder learns to draw all modalities from the maps of those that are there.

    .. math:: L = w_t L_{trans} + L_{PUIR}

    L_trans is the squared error of :class:`DecompositionLoss` on what nnU-Net's decoder makes of the fused maps, skip
    connections and all, of single modalities and of a random subset; the losses of the pre-training stay, as in the
    release. Starts from a finished ``pretrain puir``.
    """

    name = "puir_translation"
    options_class = PUIRTranslationOptions
    options: PUIRTranslationOptions

    def __init__(self, setup: Setup, options: PUIRTranslationOptions) -> None:
        super().__init__(setup, options)
        self.network.decoder.requires_grad_(True)
        self.network.decoder.seg_layers[:-1].requires_grad_(False)
        self.network.fusions.requires_grad_(True)
        self.loss_weights["translation"] = options.weight_translation

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Take encoder, prior, gates and reconstruction decoder from the pre-training; a continued run has its own.

        Raises:
            WeightsNotFoundError: there is no such file.
            WeightsIncompatibleError: of another method, network or other modalities.
        """
        if self.options.start == SCRATCH or resume:
            return
        path = find_start(folder, self.options.start)
        checkpoint = load_checkpoint(path, ["network", "heads"])
        check_method(checkpoint, PUIR.name)
        checkpoint = in_channel_order(checkpoint, self.setup.channel_names, (self.network.table, *OUTPUTS))
        report = load_pretrained(self.network, checkpoint, branch="student")
        restore_module(self.heads.decoder, _below("decoder.", checkpoint.section("heads")))
        logger.info("starting from %s\n%s", path, report.to_text())

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the class; :class:`Method` has the contract."""
        output = super().forward(views, progress)
        return replace(output, losses={**output.losses, "translation": self._translation(views)})

    def _translation(self, views: Views) -> Tensor:
        """From single modalities and from a random subset, in the crop's own frame."""
        present = views["present"]
        estimates = self.network.estimate(views["second"], present)
        single = torch.nn.functional.one_hot(views["sources"], present.shape[1]).bool()
        subset = views["subset"] | ~views["subset"].any(1, keepdim=True)
        drawn = [
            self.network.decoder(self.network.fuse(estimates._replace(present=kept)))
            for kept in (*single.unbind(1), subset)
        ]
        counts = torch.cat((views["source_counts"], views["subset"].any(1, keepdim=True)), 1)
        return self.decomposition(torch.stack(drawn, 1), views["image"], present, views["inside"], counts)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
