"""Training on one modality for another: style interventions and invariance between styles (arXiv 2411.05223)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_invariance.augmentation.on_device import RawPatches
from nnunet_invariance.augmentation.stored_views import DatasetWithViews, read_index, views_folder
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import Positions, sample_positions
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint
from nnunet_invariance.plans.style_options import ICMSegTrainerOptions
from nnunet_invariance.trainers.style import StyleTrainer
from nnunet_invariance.trainers.weights import load_checkpoint_into
from nnunet_invariance.weights.locate import named_weights


class ICMSegTrainer(StyleTrainer):
    """Both views pass through the network, the second in another style (arXiv 2411.05223).

    :class:`StyleTrainer` has the loss. x' is styled anew in every step, or it is a stored view.
    Weights are loaded only from a checkpoint that is named, of any method; otherwise the network starts from random
    weights.

    Raises:
        UnsupportedConfigurationError: a cascade.
        OptionError: an option is wrong, or ``stages`` names a stage that the network does not have.
        StyleFolderError: stored views are asked for, but missing, or of another preprocessing.

    >>> ICMSegTrainer.options_class().style
    'mixed'
    """

    options_class = ICMSegTrainerOptions
    options: ICMSegTrainerOptions
    method = "icmseg"
    #: Keys of a batch that are stored views.
    stored: frozenset[str] = frozenset()

    def get_tr_and_val_datasets(self) -> tuple[nnUNetBaseDataset | DatasetWithViews, nnUNetBaseDataset]:
        """nnU-Net's data sets; training cases have stored views if the options ask for them."""
        train, val = super().get_tr_and_val_datasets()
        if not self.options.aux or not self.options.views_probability:
            return train, val
        folder = views_folder(Path(self.preprocessed_dataset_folder))
        views = read_index(folder, preprocessing_fingerprint(self.plans_manager, self.configuration_manager))
        train = DatasetWithViews(train, folder, views, self.options.views_probability)
        self.stored = frozenset(train.of_view)
        self.print_to_log_file(
            f"{len(self.stored)} stored views of {len(train.cases.identifiers)} training cases, used with probability "
            f"{self.options.views_probability:g}"
        )
        return train, val

    def raw_patches(self) -> RawPatches:
        """As the base; if there are stored views, all patches have the channels of both views."""
        stored = self.options.aux and self.options.views_probability > 0
        return RawPatches(self.num_input_channels if stored else None)

    def load_weights(self) -> dict[str, Any]:
        """Load a checkpoint of any method that the user has named; keep random weights without one."""
        found = named_weights(self.options.checkpoint)
        if found is not None:
            return load_checkpoint_into(self.plain_network, found, self.options, self.print_to_log_file)
        self.print_to_log_file("No checkpoint is named: random weights. ICMSegTrainer needs no pre-training.")
        return {"location": "none: random weights"}

    def choose_styled(self, keys: list[str]) -> Tensor:
        """As the base; a stored view keeps its values."""
        return super().choose_styled(keys) & torch.tensor([key not in self.stored for key in keys])

    # ---- InfoNCE -----------------------------------------------------------------------------------------------------

    def build_contrast(self) -> nn.Module:
        """InfoNCE with the negatives and the label mask of the options."""
        self.contrast_reads_labels = self.options.label_mask != "none"
        return PatchInfoNCE(self.options.temperature, self.options.contrast, self.options.label_mask)

    def contrast_stages(self, deepest: int, stages: int) -> Sequence[int]:
        """The stages of the options, or the deepest one with enough positions.

        Raises:
            OptionError: the encoder has no such stage.
        """
        chosen = self.options.stages or [deepest]
        if max(chosen) >= stages:
            raise OptionError(
                f"Option 'stages' of the plans block is {chosen}; the encoder of {self.configuration_name} has the "
                f"stages 0 to {stages - 1}. Choose from these in your plans copy."
            )
        return chosen

    def sample_positions(self, valid_mask: Tensor, size: Sequence[int]) -> Positions:
        """As the base; with ``contrast`` "same_position", all samples of all ranks share their positions."""
        if self.options.contrast != "same_position":
            return super().sample_positions(valid_mask, size)
        seed = torch.randint(2**62, (1,), generator=self.generator).to(self.device)
        if self.is_ddp:
            dist.broadcast(seed, 0)
        generator = torch.Generator().manual_seed(int(seed))
        return sample_positions(valid_mask, size, self.options.num_positions, generator, shared=True)
