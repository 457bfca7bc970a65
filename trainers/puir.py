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
from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.losses.decomposition import DecompositionLoss
from nnunet_invariance.losses.equivariance import output_equivariance
from nnunet_invariance.losses.modality_invariance import ModalityInvarianceLoss
from nnunet_invariance.networks.architectures.bottleneck_decoder import BottleneckDecoder
from nnunet_invariance.networks.architectures.puir import PUIRNet, gigabytes
from nnunet_invariance.networks.planned import Architecture, cumulative_strides
from nnunet_invariance.networks.presence import present_channels
from nnunet_invariance.nnunet.planned_dataset import channel_names_of
from nnunet_invariance.plans.options import PUIRTrainerOptions, read_options
from nnunet_invariance.trainers.base import InvarianceTrainer
from nnunet_invariance.trainers.seeding import mix
from nnunet_invariance.trainers.targets import finest
from nnunet_invariance.trainers.weights import load_checkpoint_into
from nnunet_invariance.weights.locate import find_weights

EQUIVARIANCE = 3  # the stream that says in which steps the turned pass is made, the same on all ranks
SHARE = 0.9  # of the device's memory that training may take


class PUIRTrainer(InvarianceTrainer):
    r"""One encoder for all modalities, trained on random subsets of them.

    .. math:: L = L_{seg} + \lambda (w_i L_{inv} + w_e L_{equ} + w_d L_{dec})

    Invariance between the estimates of all modalities that a case has; equivariance of the segmentation under the
    symmetries of the patch; and all modalities, dropped ones too, rebuilt from X_h. The network is :class:`PUIRNet` out
    of stock plans. A missing modality is a constant image in its slot.

    Raises:
        UnsupportedConfigurationError: fewer than two channels, a cascade, 2-D plans, or a network of another kind.
    """

    options_class = PUIRTrainerOptions
    options: PUIRTrainerOptions
    method = "puir"
    dimensions = (3,)
    least_channels = 2
    trains_on_views = True  # without auxiliary losses too: modalities are dropped
    memory_remedy = '"checkpointing": "on" or "weight_dec": 0 in the plans block "nnunet_invariance"'

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """As the base; at least two channels, whose names are kept."""
        self.channel_names = channel_names_of(dataset_json)
        if len(self.channel_names) < self.least_channels:
            raise UnsupportedConfigurationError(
                f"{plans['dataset_name']} has one channel, {self.channel_names[0]}; {type(self).__name__} learns from "
                "several modalities of one individual and needs at least 2. Train this dataset with another trainer."
            )
        super().check(plans, configuration, dataset_json)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """:class:`PUIRNet` around the planned encoder and decoder; also what prediction calls."""
        configuration = configuration_manager.configuration
        options = read_options(PUIRTrainerOptions, configuration)
        planned = Architecture.from_plans(configuration["architecture"], num_input_channels, num_output_channels)
        kind = planned.network_class_name.rsplit(".", 1)[-1]
        if kind not in {"PlainConvUNet", "ResidualEncoderUNet"}:
            raise UnsupportedConfigurationError(
                f"The plans {plans_manager.plans_name} name the network {kind}; PUIRTrainer takes PlainConvUNet and "
                "ResidualEncoderUNet. Plan with nnU-Net's default or a ResEnc planner."
            )
        network = PUIRNet(planned, configuration_manager.patch_size, options.tokens, options.prior)
        network.decoder.deep_supervision = enable_deep_supervision
        return network

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """The decoder of all modalities."""
        if not self.own_weight("dec"):
            return nn.ModuleDict()
        return nn.ModuleDict({"decomposition": BottleneckDecoder(self.plain_network.encoder, len(self.channel_names))})

    def _build_views(self, encoder: nn.Module) -> None:
        """No tap: the network itself gives the estimates."""
        self.second_samples = self.batch_size
        self.invariance, self.decomposition = ModalityInvarianceLoss(), DecompositionLoss()
        self._fit_memory()
        self._build_aux(encoder)

    def _fit_memory(self) -> None:
        """Say what training will take, and make activations again for the gradient where that is too much."""
        network, patch = self.plain_network, self.configuration_manager.patch_size
        stock = sum(part.compute_conv_feature_map_size(patch) for part in (network.encoder, network.decoder))
        needed = gigabytes(network.compute_conv_feature_map_size(patch), self.batch_size)
        planned = gigabytes(stock, self.batch_size)
        cuda = self.device.type == "cuda"
        there = torch.cuda.get_device_properties(self.device).total_memory / 1e9 if cuda else float("inf")
        chosen = self.options.checkpointing
        network.checkpointing = chosen == "on" or (chosen == "auto" and needed > SHARE * there)
        self.print_to_log_file(
            f"Memory on the scale of nnU-Net's planner: {needed:.1f} GB for {network.modalities} modalities, "
            f"{planned:.1f} GB for the stock network."
            + (" Activations of the encoder are not kept but computed again." if network.checkpointing else "")
        )

    def reduce_memory(self) -> bool:
        """Activations of the encoder are not kept from here on, if that is left to us and was not so yet."""
        if self.options.checkpointing != "auto" or self.plain_network.checkpointing:
            return False
        self.plain_network.checkpointing = True
        self.print_to_log_file(
            "WARNING: out of memory: from here on activations of the encoder are not kept but computed again."
        )
        return True

    def views_of(self, transforms: BasicTransform) -> BasicTransform:
        """One view and the clean one; missing modalities stay empty in both."""
        return ZeroMissingChannels(MultiView(transforms, second=False))

    def encoder_parameters(self, encoder: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """All that pre-training leaves; decay would erase the prior and the tables of modalities."""
        named = dict(self.plain_network.named_parameters())
        shared = {name: p for name, p in named.items() if name.startswith(("encoder.", *PUIRNet.shared))}
        apart = [name for name in shared if name.endswith((".prior", PUIRNet.table))]
        return [p for name, p in shared.items() if name not in apart], [shared[name] for name in apart]

    def load_weights(self) -> dict[str, Any]:
        """Weights of this method from the four places, modalities matched by their names."""
        names = (self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name)
        found = find_weights(self.method, *names, self.options.checkpoint)
        log = self.print_to_log_file
        return load_checkpoint_into(self.plain_network, found, self.options, log, self.method, self.channel_names)

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Segmentation from a random subset of the modalities, and the auxiliary losses but equivariance."""
        image, clean, content = batch["views"].first, batch["views"].clean, batch["views"].valid_mask > 0
        available = present_channels(image)
        kept = drop_modalities(available, self.options.modality_dropout, self.generator)
        logits, estimates, profile = self.network(image, kept, True)
        parts = {}
        if self.own_weight("inv"):
            parts["inv"] = self.invariance(estimates.profiles, available)
        if self.own_weight("dec"):
            rebuilt = self.aux["decomposition"](profile)[:, None]
            parts["dec"] = self.decomposition(rebuilt, clean, available, content, kept.any(1, keepdim=True))
        batch["segmented"] = (image, kept, finest(logits).detach())
        return self.loss(logits, batch["target"]), parts

    def _backward(self, batch: dict[str, Any], samples: int) -> dict[str, Tensor]:
        """As the base, then the turned pass: the graph of the first is gone by then, so that memory holds one."""
        losses = super()._backward(batch, samples)
        if not self.own_weight("equ"):
            return losses
        with self.precision():
            equ = self._equivariance(*batch["segmented"])
        total = losses.pop("total").detach() + self.weight_of("equ") * equ
        if equ.requires_grad:
            self.add_gradients(total)
        return {**losses, "equ": equ, "total": total}

    @cached_property
    def symmetries(self) -> Tensor:
        """All but the first, which changes nothing; no reflections where nnU-Net does not mirror every axis."""
        strides = cumulative_strides(self.plain_network.encoder.strides)
        axes = self.inference_allowed_mirroring_axes or ()
        return symmetries([self.configuration_manager.patch_size, *strides], reflections=len(axes) == 3)[1:]

    def _equivariance(self, image: Tensor, kept: Tensor, logits: Tensor) -> Tensor:
        """In a share of the steps, weighted up by as much; 0 in the others."""
        step = self.current_epoch * self.num_iterations_per_epoch + self.step_in_epoch
        chance = torch.Generator().manual_seed(mix(self.options.seed or 0, EQUIVARIANCE, step))
        drawn = torch.rand((), generator=chance) < self.options.equ_probability
        if not drawn or not len(self.symmetries):
            return logits.new_zeros(())
        elements = sample_symmetries(self.symmetries, len(image), self.generator).to(image.device)
        outputs = self.network(apply_symmetry(image, elements), kept)
        regions = self.label_manager.has_regions
        loss = output_equivariance(invert_symmetry(finest(outputs), elements), logits, regions)
        # Several ranks wait for a gradient of every parameter, of the coarser outputs too: that of nothing is zero.
        idle = sum(output.flatten()[:0].sum() for output in outputs[1:]) if isinstance(outputs, list) else 0
        return loss / self.options.equ_probability + idle

    def own_weight(self, name: str) -> float:
        """Of one auxiliary loss."""
        return 0.0 if self.options.aux == "none" else getattr(self.options, f"weight_{name}")

    def weight_of(self, name: str) -> float:
        """The ramped ``aux_weight`` times the loss's own."""
        return self.aux_weight * self.own_weight(name)
