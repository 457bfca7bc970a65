"""anatomix: dense supervised contrast between two random appearances of random label maps (arXiv 2411.02372)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.common.options import choice, count, number, text
from nnunet_invariance.common.wording import counted
from nnunet_invariance.losses.info_nce import SupervisedInfoNCE
from nnunet_invariance.losses.tiled_info_nce import CLASS_WEIGHTS
from nnunet_invariance.networks.feature_levels import feature_maps, levels_of
from nnunet_invariance.networks.heads.projection import ContrastHead, gather_positions
from nnunet_invariance.networks.planned import cumulative_strides
from nnunet_invariance.pretraining.data.synthetic_pairs import (
    FIRST_HELD_OUT_NUMBER,
    VOLUMES_IN_TURN,
    PairIndexDataset,
    PairParameters,
    SyntheticPairGenerator,
    balanced_positions,
)
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel
from nnunet_invariance.pretraining.measures.label_retrieval import label_retrieval
from nnunet_invariance.pretraining.methods.anatomix_networks import NETWORK_PRESETS
from nnunet_invariance.synthesis.engine import SyntheticPairs

#: Most patches of a volume by default.
MOST_CUTS = 8


@dataclass(frozen=True)
class AnatomixPretrainingOptions(MethodOptions):
    """Options of ``pretrain anatomix``.

    Raises:
        OptionError: a value is out of range.

    >>> AnatomixPretrainingOptions(patch=64).pretext
    'labels'
    """

    batch_size: int = count(
        0, 0, doc="Label maps per step and rank, two images of each; 0: half the planned batch size, at least 1."
    )
    patch: int = count(0, 0, doc="Side of the cubic patch that the network sees, voxels; 0: the planned patch.")
    volume: int = count(
        96, 32, doc="Smallest side of a synthetic volume, voxels; smaller patches are cropped from it at random."
    )
    cuts: int = count(
        0, 0, doc="Patches cut from each synthetic volume, each in another step; 0: as many as fill it, at most 8."
    )
    templates: str = text("", doc="Folder of label maps whose shapes are used; empty: those of ``shapes``.")
    shapes: Literal["procedural", "formula", "mixed"] = choice(
        "procedural", "formula", "mixed", doc="Shapes without templates: procedural, of implicit formulas, or both."
    )
    num_positions: int = count(512, 2, doc="Positions sampled per feature map and pair; all if a map has fewer.")
    temperature: float = number(0.33, 0, math.inf, low_excluded=True, doc="Temperature of InfoNCE.")
    anchor_class_weight: Literal["none", "inverse_sqrt", "inverse"] = choice(
        *CLASS_WEIGHTS, doc="Weight of an anchor by the number of sampled positions of its label."
    )
    denominator_class_weight: Literal["none", "inverse_sqrt", "inverse"] = choice(
        *CLASS_WEIGHTS, doc="The same for the rows in the denominator of InfoNCE."
    )
    pretext: Literal["labels", "positions", "denoising"] = choice(
        "labels", "positions", "denoising",
        doc="labels: voxels of one label are positives; positions: only the same voxel in the other view is "
        "a positive; denoising: the network restores the appearance before corruption.",
    )  # fmt: skip
    held_out: int = count(
        16, 0, doc="Pairs that are never trained on and are measured after every epoch; 0 measures nothing."
    )


class Anatomix(Method):
    r"""Voxels with the same label have similar features at several depths, whatever the appearance; no image is read.

    Each pair consists of two random appearances of one random label map. Each of the maps of :func:`levels_of` has a
    projection head. At sampled positions of the map, the supervised multi-positive InfoNCE compares the features of
    both views; the loss is the mean over the maps. The label of a position is that of its centre. There is no teacher.

    The loss is bounded by the labels of a batch: its range is often below one nat. ``learned`` is therefore
    :math:`(L_{equal} - L) / (L_{equal} - L_{ideal})`, 0 for equal and 1 for ideal features
    (:meth:`.SupervisedInfoNCE.bounds`).

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> [level.name for level in Anatomix(setup, AnatomixPretrainingOptions(volume=32)).levels]
    ['encoder_0', 'encoder_1', 'decoder_0']
    """

    name = "anatomix"
    citation = (
        "Dey et al., Learning General-purpose Biomedical Volume Representations using Randomized Synthesis, "
        "ICLR 2025, arXiv 2411.02372"
    )
    options_class = AnatomixPretrainingOptions
    options: AnatomixPretrainingOptions
    least_volumes = 0
    loop_defaults: ClassVar[Mapping[str, float]] = {"lr": 2e-4, "weight_decay": 1e-5}
    network_presets = NETWORK_PRESETS
    titles: ClassVar[Mapping[str, str]] = {
        "learned": "learned: 0 chance, 1 ideal (higher is better)",
        "held_out_learned": "learned, on held-out pairs (higher is better)",
        "label_retrieval": "retrieval of labels (higher is better)",
    }

    def __init__(self, setup: Setup, options: AnatomixPretrainingOptions) -> None:
        super().__init__(setup, options)
        self.patch_size = (options.patch,) * 3 if options.patch else setup.patch_size
        divisor = max(cumulative_strides(self.network.encoder.strides)[-1]) if options.patch else 1
        templates = Path(options.templates) if options.templates else None
        self.pair_generator = SyntheticPairGenerator(
            self.patch_size, options.volume, templates, options.shapes, divisor
        )
        self.cuts = self._number_of_cuts()
        self.batch_size = options.batch_size or max(1, setup.batch_size // 2)
        self.levels = levels_of(self.network)
        if options.pretext == "denoising":
            self.loss_weights = {"denoising": 1.0}
        else:
            self.network.decoder.seg_layers.requires_grad_(False)  # no loss uses them
            self.heads = nn.ModuleList(ContrastHead(level.channels) for level in self.levels)
            self.loss_weights = {level.name: 1 / len(self.levels) for level in self.levels}
        weights = (options.anchor_class_weight, options.denominator_class_weight)
        self.contrast = SupervisedInfoNCE(options.temperature, "within", "within", *weights)
        # No state: volumes that are not there, for example because the run was continued, are made again.
        self._recent_volumes = lru_cache(VOLUMES_IN_TURN if self.cuts > 1 else 0)(self._volumes)
        self._held_out: list[dict[str, Tensor]] | None = None

    def _number_of_cuts(self) -> int:
        size = self.pair_generator.engine.options.size
        fitting = math.prod(size) // math.prod(self.patch_size)
        if size == self.patch_size and self.options.cuts > 1:
            expected = f"0 or 1, because a patch of {self.patch_size} voxels is the whole volume"
            raise self.options.error("cuts", expected)
        return self.options.cuts or min(MOST_CUTS, fitting)

    def describe(self) -> str:
        """See :class:`Method`."""
        maps = ", ".join(level.name for level in self.levels)
        patches = f"{counted(self.batch_size, 'pair')} of {self.patch_size} voxels, "
        patches += f"{counted(self.cuts, 'patch', 'patches')} of each volume"
        return f"{self.options.pretext} on {maps}, {patches}"

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return PairIndexDataset(self.batch_size, seed, steps, rank, self.cuts)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """Cut the patches of the batch out of volumes, which their seed and numbers determine."""
        seed, cut, *numbers = torch.stack((batch["seed"], batch["cut"], *batch["number"])).tolist()  # one wait
        device = next(self.network.parameters()).device
        return self._views(*self._recent_volumes(device, seed, tuple(numbers), self.cuts), cut)

    def _volumes(
        self, device: torch.device, seed: int, numbers: tuple[int, ...], cuts: int, augment: bool = True
    ) -> tuple[list[PairParameters], list[SyntheticPairs]]:
        """Parameters and volumes with these numbers; the target of denoising is a second set of volumes."""
        parameters = [self.pair_generator.sample(seed, number, augment, cuts) for number in numbers]
        volumes = [self.pair_generator.volumes(parameters, device)]
        if self.options.pretext == "denoising":
            volumes.append(self.pair_generator.clean_volumes(parameters, device))
        return parameters, volumes

    def _views(self, parameters: list[PairParameters], volumes: list[SyntheticPairs], cut: int) -> dict[str, Tensor]:
        r"""``image`` (2B, 1, \*patch), all first views before all second views, and for each map positions and labels.

        Positions are flat indices (B, N), and labels (B, N) are those of the positions.
        """
        cuts, count = [p.cuts[cut] for p in parameters], self.options.num_positions
        pair, *clean = (self.pair_generator.patches(one, cuts) for one in volumes)
        views = {"image": self._normalised(torch.cat(pair.views))}
        if clean:
            views["clean"] = self._normalised(torch.cat(clean[0].views))
        for which, level in enumerate(self.levels):
            size = level.size(self.patch_size)
            labels = F.interpolate(pair.labels.float(), size, mode="nearest-exact").flatten(1)
            seeds = (one.position_seed + which for one in cuts)
            index = torch.stack([balanced_positions(y, count, s) for y, s in zip(labels, seeds, strict=True)])
            views |= {f"{level.name}.index": index, f"{level.name}.labels": labels.gather(1, index).long()}
        return views

    def _normalised(self, image: Tensor) -> Tensor:
        if self.setup.unit_range:
            return image
        axes = tuple(range(1, image.ndim))
        return (image - image.mean(axes, keepdim=True)) / image.std(axes, keepdim=True).clamp(min=1e-6)

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the docstring of the class, and :class:`Method`."""
        if self.options.pretext == "denoising":
            error = (self.network(views["image"]).float() - views["clean"]).square()
            return StepOutput({"denoising": error.mean()})
        losses, bounds = {}, []
        for level, head, feature_map in zip(
            self.levels, self.heads, feature_maps(self.network, views["image"]), strict=True
        ):
            rows = gather_positions(feature_map, views[f"{level.name}.index"].repeat(2, 1))
            rows = head(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            labels = views[f"{level.name}.labels"]
            if self.options.pretext == "positions":
                labels = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
            labels = labels.repeat(1, 2)
            losses[level.name] = self.contrast(torch.cat(rows.chunk(2), 1), labels)
            bounds.append(torch.stack(self.contrast.bounds(labels)))
        ideal, chance = torch.stack(bounds).mean(0)
        loss = torch.stack([value.detach() for value in losses.values()]).mean()
        return StepOutput(losses, {"learned": (chance - loss) / (chance - ideal).clamp(min=1e-6)})

    def picture(self, views: Views) -> list[Panel]:
        """See :class:`Method`: both appearances of each label map; with denoising, the first as restored and clean."""
        first, second = views["image"][:, 0].chunk(2)
        if self.options.pretext != "denoising":
            return [Panel("first appearance", first), Panel("second appearance", second)]
        clean = views["clean"][:, 0].chunk(2)[0]
        restored = self.network(views["image"][: len(first)])[:, 0]
        return [Panel("corrupted", first), Panel("restored", restored, clean), Panel("clean", clean)]

    @torch.no_grad()
    def held_out_views(self, number: int) -> dict[str, Tensor]:
        """One pair without online augmentation, the same in every run; see :data:`FIRST_HELD_OUT_NUMBER`."""
        device = next(self.network.parameters()).device
        return self._views(*self._volumes(device, 0, (number,), cuts=1, augment=False), 0)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """``held_out_loss``, ``held_out_learned``, and ``label_retrieval`` of the finest map, on held-out pairs."""
        rows = []
        device = next(self.network.parameters()).device
        for stored in self._held_out_pairs():
            views = {name: tensor.to(device) for name, tensor in stored.items()}
            output = self.forward(views, 1.0)
            weighted = (self.loss_weights[name] * value.float() for name, value in output.losses.items())
            row = {"held_out_loss": torch.stack(list(weighted)).sum()}
            row |= {f"held_out_{name}": value for name, value in output.diagnostics.items()}
            rows.append({**row, "label_retrieval": self._retrieval(views)})
        return {name: torch.stack([row[name] for row in rows]).nanmean().item() for name in rows[0]} if rows else {}

    def _held_out_pairs(self) -> list[dict[str, Tensor]]:
        """All held-out views; they are generated once and kept in host memory."""
        if self._held_out is None:
            views = (self.held_out_views(FIRST_HELD_OUT_NUMBER + index) for index in range(self.options.held_out))
            self._held_out = [{name: tensor.cpu() for name, tensor in one.items()} for one in views]
        return self._held_out

    def _retrieval(self, views: dict[str, Tensor]) -> Tensor:
        finest = self.levels[-1].name
        index, labels = views[f"{finest}.index"], views[f"{finest}.labels"][0]
        first, second = gather_positions(feature_maps(self.network, views["image"])[-1], index.repeat(2, 1))
        return label_retrieval(first, labels, second, labels, same_position=True)

    def problems(self, diagnostics: Mapping[str, float]) -> list[str]:
        """A collapse if the held-out loss is that of features that are all equal."""
        learned = diagnostics.get("held_out_learned", 1.0)
        if learned > 0.01:
            return []
        return [
            f"collapse: the held-out loss is that of equal features (learned {learned:.3f} of the way to ideal ones); "
            "use larger synthetic volumes (--set volume=96), a longer run or another learning rate (--set lr=...)"
        ]
