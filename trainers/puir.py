"""Segmentation from any subset of the modalities (PUIR, arXiv 2411.06106)."""

from functools import cached_property
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_invariance.augmentation.cube_group import apply_symmetry, invert_symmetry, sample_symmetries, symmetries
from nnunet_invariance.augmentation.missing_modalities import ZeroMissingChannels, drop_modalities
from nnunet_invariance.augmentation.views import MultiView
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.losses.decomposition import DecompositionLoss
from nnunet_invariance.losses.equivariance import OutputEquivarianceLoss
from nnunet_invariance.losses.modality_invariance import ModalityInvarianceLoss
from nnunet_invariance.losses.subset_distillation import SubsetDistillationLoss
from nnunet_invariance.networks.architectures.bottleneck_decoder import BottleneckDecoder
from nnunet_invariance.networks.architectures.puir import Estimates, PUIRNet, gigabytes
from nnunet_invariance.networks.planned import Architecture, cumulative_strides
from nnunet_invariance.networks.presence import present_channels
from nnunet_invariance.nnunet.planned_dataset import channel_names_of
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.options import PUIRTrainerOptions
from nnunet_invariance.trainers.auxiliary_loss import AuxiliaryLossTrainer
from nnunet_invariance.trainers.schedule import ramp
from nnunet_invariance.trainers.seeding import Stream, mix
from nnunet_invariance.trainers.targets import finest
from nnunet_invariance.weights.checkpoint import Checkpoint
from nnunet_invariance.weights.modality_tables import in_channel_order

MEMORY_FRACTION = 0.9  # of the device's memory that training may use


class PUIRTrainer(AuxiliaryLossTrainer):
    r"""One encoder for all modalities, trained on random subsets of them.

    .. math:: L = L_{seg} + \lambda (w_i L_{inv} + w_e L_{equ} + w_d L_{dec} + w_s L_{dist})

    L_inv: invariance between the estimates of all modalities of a case. L_equ: equivariance of the segmentation under
    the symmetries of the patch. L_dec: reconstruction of all modalities, dropped ones too, from X_h. L_dist: divergence
    from the segmentation of all modalities to that of the subset. The network is :class:`PUIRNet` with the stages of
    stock plans. A missing modality is an image of zeros in its channel.

    Raises:
        UnsupportedConfigurationError: fewer than two channels, a cascade, 2-D plans, or a network of another kind.

    >>> PUIRTrainer.least_channels
    2
    """

    options_class = PUIRTrainerOptions
    options: PUIRTrainerOptions
    method = "puir"
    least_channels = 2
    accepts_missing_channels = True
    memory_remedy = '"checkpointing": "on" or "weight_decomposition": 0 in the plans block "nnunet_invariance"'

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """As the base; records the channel names."""
        super().check(plans, configuration, dataset_json)
        self.channel_names = channel_names_of(dataset_json)

    @property
    def trains_on_views(self) -> bool:
        """Modalities are dropped without auxiliary losses too."""
        return True

    # ---- network and weights -----------------------------------------------------------------------------------------

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build :class:`PUIRNet` around the planned encoder and decoder; prediction calls this too."""
        configuration = configuration_manager.configuration
        options = read_options(PUIRTrainerOptions, configuration)
        planned = Architecture.from_plans(configuration["architecture"], num_input_channels, num_output_channels)
        if options.head == "summed":
            raise UnsupportedConfigurationError(
                'PUIRTrainer has a network of its own and no summed head. Remove "head" from the plans block.'
            )
        kind = planned.network_class_name.rsplit(".", 1)[-1]
        if kind not in {"PlainConvUNet", "ResidualEncoderUNet"}:
            raise UnsupportedConfigurationError(
                f"The plans {plans_manager.plans_name} name the network {kind}; PUIRTrainer supports PlainConvUNet and "
                "ResidualEncoderUNet. Plan with nnU-Net's default or a ResEnc planner."
            )
        network = PUIRNet(planned, configuration_manager.patch_size, options.tokens, options.prior, options.stem)
        decoder: Any = network.decoder
        decoder.deep_supervision = enable_deep_supervision
        return network

    def encoder_parameters(self, encoder: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Everything that is pre-trained; weight decay would erase the prior and the tables of modalities."""
        named = dict(self.plain_network.named_parameters())
        shared = {name: p for name, p in named.items() if name.startswith(("encoder.", *PUIRNet.shared))}
        undecayed = [name for name in shared if name.endswith((".prior", *PUIRNet.tables))]
        return [p for name, p in shared.items() if name not in undecayed], [shared[name] for name in undecayed]

    def adapt_weights(self, checkpoint: Checkpoint) -> Checkpoint:
        """Match the tables of modalities to this data set's channels by name."""
        return in_channel_order(checkpoint, self.channel_names, PUIRNet.tables)

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """Build the decoder that reconstructs all modalities."""
        if not self.own_weight("decomposition"):
            return nn.ModuleDict()
        return nn.ModuleDict({"decomposition": BottleneckDecoder(self.plain_network.encoder, len(self.channel_names))})

    # ---- memory ------------------------------------------------------------------------------------------------------

    def prepare_views(self, encoder: nn.Module) -> None:
        """No feature hook, because the network returns the estimates; decide whether activations are recomputed."""
        self.invariance, self.decomposition = ModalityInvarianceLoss(), DecompositionLoss()
        self.fit_memory()

    def fit_memory(self) -> None:
        """Log the expected memory, and recompute activations in the backward pass if it exceeds the device's."""
        network, patch = self.plain_network, self.configuration_manager.patch_size
        stock = sum(part.compute_conv_feature_map_size(patch) for part in (network.encoder, network.decoder))
        needed = gigabytes(network.compute_conv_feature_map_size(patch), self.batch_size)
        planned = gigabytes(stock, self.batch_size)
        cuda = self.device.type == "cuda"
        available = torch.cuda.get_device_properties(self.device).total_memory / 1e9 if cuda else float("inf")
        chosen = self.options.checkpointing
        # A plain bool: torch.compile takes a NumPy bool for a tensor and breaks the graph.
        network.checkpointing = bool(chosen == "on" or (chosen == "auto" and needed > MEMORY_FRACTION * available))
        self.print_to_log_file(
            f"Memory on the scale of nnU-Net's planner: {needed:.1f} GB for {network.modalities} modalities, "
            f"{planned:.1f} GB for the stock network."
            + (" Activations of the encoder are recomputed in the backward pass." if network.checkpointing else "")
        )

    def reduce_memory(self) -> bool:
        """Recompute activations of the encoder from now on; False if the options forbid it or it is done already."""
        if self.options.checkpointing != "auto" or self.plain_network.checkpointing:
            return False
        self.plain_network.checkpointing = True
        self.print_to_log_file(
            "WARNING: out of memory: from now on activations of the encoder are recomputed in the backward pass."
        )
        return True

    # ---- losses ------------------------------------------------------------------------------------------------------

    def view_transforms(self, pipeline: BasicTransform) -> BasicTransform:
        """One augmented view and the clean view; missing modalities stay empty in both."""
        return ZeroMissingChannels(MultiView(pipeline, second=False))

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Segmentation from a random subset of the modalities, and all auxiliary losses except equivariance."""
        image, clean, valid_mask = batch["views"].first, batch["views"].clean, batch["views"].valid_mask > 0
        available = present_channels(image)
        probability = self.options.modality_dropout * ramp(self.progress, self.options.dropout_ramp)
        kept = drop_modalities(available, probability, self.generator)
        logits, estimates, profile = self.network(image, kept, True)
        losses = {}
        if self.own_weight("invariance"):
            losses["invariance"] = self.invariance(estimates.profiles, available)
        if self.own_weight("decomposition"):
            rebuilt = self.aux["decomposition"](profile)[:, None]
            losses["decomposition"] = self.decomposition(
                rebuilt, clean, available, valid_mask, kept.any(1, keepdim=True)
            )
        if self.own_weight("distillation"):
            losses["distillation"] = self.distillation(finest(logits), estimates, available, kept)
        batch["segmented"] = (image, kept, finest(logits).detach())
        return self.loss(logits, batch["target"]), losses

    def losses_of_later_pass(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Equivariance of the segmentation."""
        if not self.own_weight("equivariance"):
            return {}
        return {"equivariance": self.equivariance(*batch["segmented"])}

    def distillation(self, logits: Tensor, estimates: Estimates, available: Tensor, kept: Tensor) -> Tensor:
        """Distillation from the segmentation of all modalities; 0 if no sample lacks one of its modalities.

        The encoder has seen all modalities already, so the additional cost is a pass of the decoder without gradient.

        Args:
            logits: (B, K, *spatial) segmentation from the modalities that are kept.
            available, kept: (B, M) bool.
        """
        lacking = (available & ~kept).any(1)
        if not lacking.any():
            return logits.new_zeros(())
        network = self.plain_network
        with torch.no_grad():
            everything = estimates._replace(present=available | ~available.any(1, keepdim=True))
            reference = finest(network.decoder(network.fuse(everything)))
        return SubsetDistillationLoss(multilabel=self.label_manager.has_regions)(logits, reference, lacking)

    def equivariance(self, image: Tensor, kept: Tensor, logits: Tensor) -> Tensor:
        """Equivariance loss in a random fraction of the steps, scaled by its inverse; 0 in the other steps.

        Args:
            image: (B, M, *spatial).
            kept: (B, M) bool, the modalities that are used.
            logits: (B, K, *spatial) segmentation of ``image``.
        """
        step = self.current_epoch * self.num_iterations_per_epoch + self.step_in_epoch
        # All ranks must take the additional pass in the same steps.
        generator = torch.Generator().manual_seed(mix(self.options.seed or 0, Stream.EQUIVARIANCE, step))
        chosen = torch.rand((), generator=generator) < self.options.equivariance_probability
        if not chosen or not len(self.symmetries):
            return logits.new_zeros(())
        elements = copy_to(image.device, sample_symmetries(self.symmetries, len(image), self.generator))
        outputs = self.network(apply_symmetry(image, elements), kept)
        equivariance = OutputEquivarianceLoss(multilabel=self.label_manager.has_regions)
        loss = equivariance(invert_symmetry(finest(outputs), elements), logits)
        # DDP waits for a gradient of every parameter, of the coarser outputs too: an empty sum has the gradient 0.
        coarser = outputs[1:] if isinstance(outputs, list) else []
        unused = sum((output.flatten()[:0].sum() for output in coarser), loss.new_zeros(()))
        return loss / self.options.equivariance_probability + unused

    @cached_property
    def symmetries(self) -> Tensor:
        """Symmetries of the patch in millimetres without the identity; no reflections unless all axes are mirrored."""
        strides = cumulative_strides(self.plain_network.encoder.strides)
        plan = self.configuration_manager
        reflections = len(self.inference_allowed_mirroring_axes or ()) == 3
        return symmetries([plan.patch_size, *strides, plan.spacing], reflections=reflections)[1:]

    def own_weight(self, name: str) -> float:
        """Weight of one auxiliary loss relative to the others."""
        return getattr(self.options, f"weight_{name}") if self.options.aux else 0.0

    def weight_of(self, name: str) -> float:
        """The ramped ``aux_weight`` times the loss's own weight."""
        return self.aux_weight * self.own_weight(name)
