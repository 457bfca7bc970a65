"""The method: predict where a random crop overlaps the base crops of the same region."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from voco_loss import correlation, overlap_targets, position_loss, separation_loss, similarity

from nnunet_invariance.common.options import count
from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.networks.planned import cumulative_strides
from nnunet_invariance.pretraining.data.crops import RandomCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions

FEATURES = 128


@dataclass(frozen=True)
class VoCoOptions(MethodOptions):
    """Options of ``pretrain voco``."""

    grid: int = count(2, 2, doc="Base crops along each axis.")
    num_crops: int = count(4, 1, doc="Random crops per region.")
    batch_size: int = count(0, 0, doc="Regions per step and rank; 0: the planned batch size.")


class VoCo(Method):
    r"""The similarity of a random crop and a base crop predicts their overlap; base crops stay different.

    .. math::
        p_{kn} = \max(0, \cos(h(f(c_k)), h(f(b_n)))), \quad
        L = -\operatorname{mean} \log(1 - |y_{kn} - p_{kn}|)
            + \operatorname{mean}_{n \neq m} \max(0, \cos(h(f(b_n)), h(f(b_m))))
    """

    name = "voco"
    citation = "Wu et al., VoCo, CVPR 2024, arXiv 2402.17300"
    options_class = VoCoOptions
    options: VoCoOptions
    pretrained = ("encoder",)

    def __init__(self, setup: Setup, options: VoCoOptions) -> None:
        super().__init__(setup, options)
        self.freeze_decoder()  # no loss depends on it
        width = self.network.encoder.output_channels[-1]
        self.heads = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, FEATURES))
        self.loss_weights = {"position": 1.0, "separation": 1.0}
        self.batch_size = options.batch_size or setup.batch_size
        # The region is the planned patch, enlarged so that a crop's last feature map has two voxels per axis or more.
        strides = cumulative_strides(self.network.encoder.strides)[-1]
        self.crop_size = tuple(
            max(2, ceil(p / (options.grid * s))) * s for p, s in zip(setup.patch_size, strides, strict=True)
        )
        self.region_size = tuple(options.grid * s for s in self.crop_size)

    def describe(self) -> str:
        """See the base class."""
        return f"{self.options.grid**3} base crops and {self.options.num_crops} random crops of {self.crop_size} voxels"

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """Random regions; ``make_views`` cuts them into crops."""
        return RandomCrops(self.setup.cases, self.region_size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """All base crops, a few random crops, and the overlap of each pair."""
        regions = batch["image"]
        free = regions.new_tensor(self.region_size) - regions.new_tensor(self.crop_size)
        shape = (len(regions), self.options.num_crops, 3)
        random = torch.rand(shape, generator=generator, device=regions.device)
        origins = (random * (free + 1)).floor()
        return {
            "bases": tile(regions, self.crop_size),
            "crops": cut(regions, origins, self.crop_size),
            "overlap": overlap_targets(origins, self.crop_size, self.options.grid),
        }

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the class."""
        target = views["overlap"]
        bases, crops = (self.features(views[name]).unflatten(0, (len(target), -1)) for name in ("bases", "crops"))
        prediction = similarity(crops, bases)
        losses = {"position": position_loss(prediction, target), "separation": separation_loss(bases)}
        return StepOutput(losses, {"correlation": correlation(prediction, target)})

    def features(self, images: Tensor) -> Tensor:
        """Projected means of the encoder's last feature maps: (M, F) for images (M, C, z, y, x)."""
        return at_least_float32(self.heads(self.network.encoder(images)[-1].flatten(2).mean(2)))


def tile(regions: Tensor, size: Sequence[int]) -> Tensor:
    """Cut regions (B, C, z, y, x) into base crops (B · N, C, *size), in the order of the overlap targets."""
    for axis, length in enumerate(size, start=2):
        regions = regions.unfold(axis, length, length)
    return regions.movedim(1, 4).flatten(0, 3)


def cut(regions: Tensor, origins: Tensor, size: Sequence[int]) -> Tensor:
    """Cut crops (B · K, C, *size) that start at the voxels ``origins`` (B, K, 3) of regions (B, C, z, y, x)."""
    crops = []
    for region, lows in zip(regions, origins.long().tolist(), strict=True):
        for low in lows:
            box = (slice(None), *(slice(start, start + length) for start, length in zip(low, size, strict=True)))
            crops.append(region[box])
    return torch.stack(crops)
