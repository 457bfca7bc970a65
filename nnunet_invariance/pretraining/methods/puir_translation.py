"""Modality translation with PUIR: any modalities that are present give all the others (arXiv 2411.06106)."""

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
from nnunet_invariance.networks.architectures.smooth_upsampling import smooth_upsampling
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.engine.method import Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.methods.puir import PUIR, PUIROptions
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from nnunet_invariance.weights.locate import FINAL
from nnunet_invariance.weights.modality_tables import in_channel_order
from nnunet_invariance.weights.transfer import check_method, load_pretrained

logger = logging.getLogger(__name__)

SCRATCH = "none"
#: Tensors of the reconstruction decoder that have one row per modality.
OUTPUTS = ("heads.decoder.output.weight", "heads.decoder.output.bias")


@dataclass(frozen=True)
class PUIRTranslationOptions(PUIROptions):
    """Options of ``translate train``: those of ``pretrain puir``, and two more.

    Raises:
        OptionError: a value is out of range.

    >>> PUIRTranslationOptions().source_modalities
    1
    """

    source_modalities: int = count(1, 1, doc="Modalities per step from each of which all modalities are translated.")
    weight_translation: float = number(
        1.0, 0, math.inf, low_excluded=True, doc="Weight of the squared error of the translated modalities."
    )
    initial_weights: str = text(
        "", doc="Checkpoint of `pretrain puir`; empty: the one of the same data set and plans; none: random weights."
    )


def find_initial_weights(folder: Path, given: str) -> Path:
    """The checkpoint of ``pretrain puir`` that a run in ``folder`` starts from; see :class:`PUIRTranslationOptions`.

    Raises:
        WeightsNotFoundError: there is no such file.
    """
    own = folder.with_name(folder.name.replace(PUIRTranslation.name, PUIR.name, 1)) / FINAL
    path = Path(given) if given else own
    if not path.is_file():
        raise WeightsNotFoundError(
            f"{path} does not exist, but modality translation starts from a finished pre-training. Run "
            f"`nnunet-invariance pretrain puir` with the same plans, or give --initial-weights FILE, or"
            f" --initial-weights {SCRATCH}."
        )
    return path


class PUIRTranslation(PUIR):
    r"""PUIR whose planned decoder also learns to translate the present modalities into all modalities.

    .. math:: L = w_t L_{trans} + L_{PUIR}

    L_trans is the squared error of :class:`DecompositionLoss` on the output of nnU-Net's decoder, with skip
    connections, for the fused maps of single modalities and of a random subset. Its transposed convolutions, which draw
    a checkerboard into images, are replaced by linear interpolation. The losses of the pre-training stay, as in the
    authors' code. The training starts from a finished ``pretrain puir``.

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 2, 2)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> PUIRTranslation(setup, PUIRTranslationOptions()).loss_weights["translation"]
    1.0
    """

    name = "puir_translation"
    options_class = PUIRTranslationOptions
    options: PUIRTranslationOptions

    def __init__(self, setup: Setup, options: PUIRTranslationOptions) -> None:
        super().__init__(setup, options)
        smooth_upsampling(self.network.decoder)
        self.network.decoder.requires_grad_(True)
        self.network.decoder.seg_layers[:-1].requires_grad_(False)
        self.network.fusions.requires_grad_(True)
        self.loss_weights["translation"] = options.weight_translation

    @classmethod
    def check_files(cls, options: MethodOptions, folder: Path, resume: bool) -> None:
        """The checkpoint that the run starts from must exist and be sound."""
        if isinstance(options, PUIRTranslationOptions) and options.initial_weights != SCRATCH and not resume:
            read_metadata(find_initial_weights(folder, options.initial_weights))

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Load encoder, prior, gates and reconstruction decoder of the pre-training, unless a run is continued.

        Raises:
            WeightsNotFoundError: there is no such file.
            WeightsIncompatibleError: the checkpoint is of another method, another network or other modalities.
        """
        if self.options.initial_weights == SCRATCH or resume:
            return
        path = find_initial_weights(folder, self.options.initial_weights)
        checkpoint = load_checkpoint(path, ["network", "heads"])
        check_method(checkpoint, PUIR.name)
        checkpoint = in_channel_order(checkpoint, self.setup.channel_names, (*self.network.tables, *OUTPUTS))
        report = load_pretrained(self.network, checkpoint, branch="student")
        restore_module(self.heads.decoder, _with_prefix("decoder.", checkpoint.section("heads")))
        logger.info("starting from %s\n%s", path, report.to_text())

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the docstring of the class, and :class:`Method`."""
        output = super().forward(views, progress)
        return replace(output, losses={**output.losses, "translation": self._translation(views)})

    def _translation(self, views: Views) -> Tensor:
        """Translate single modalities, and a random subset, without a symmetry."""
        present = views["present"]
        estimates = self.network.estimate(views["second"], present)
        single = torch.nn.functional.one_hot(views["sources"], present.shape[1]).bool()
        subset = views["subset"] | ~views["subset"].any(1, keepdim=True)
        outputs = [
            self.network.decoder(self.network.fuse(estimates._replace(present=mask)))
            for mask in (*single.unbind(1), subset)
        ]
        output_mask = torch.cat((views["source_mask"], views["subset"].any(1, keepdim=True)), 1)
        return self.decomposition(torch.stack(outputs, 1), views["image"], present, views["valid_mask"], output_mask)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors whose names start with the prefix, without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
