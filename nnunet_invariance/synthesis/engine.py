"""The data engine: a label map and two random appearances of it, as many as asked, on the device they are used on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnunet_invariance.synthesis.appearance import Appearance, apply_appearance, sample_appearance
from nnunet_invariance.synthesis.corruptions import Corruption, apply_corruption, sample_corruption
from nnunet_invariance.synthesis.ensembles import Ensemble, apply_ensemble, sample_ensemble
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator
from nnunet_invariance.synthesis.shapes import procedural_templates
from nnunet_invariance.synthesis.templates import TemplateBank, read_templates


@dataclass(frozen=True)
class View:
    """One appearance and what the acquisition does to it."""

    appearance: Appearance
    corruption: Corruption


@dataclass(frozen=True)
class Element:
    """Everything random about one element."""

    ensemble: Ensemble
    views: tuple[View, View]


@dataclass(frozen=True)
class Synthetic:
    """Labels (B, 1, z, y, x), int16, and two appearances of the same shape, float32 in [0, 1]."""

    labels: Tensor
    views: tuple[Tensor, Tensor]


class SynthesisEngine:
    """Elements numbered 0, 1, 2, ... of an endless data set; each depends on seed, number, options and templates alone.

    Args:
        options: all ranges.
        templates: a folder of label maps; procedural shapes when ``None``.
        device: where everything at full size is made.
        seed: of the elements and of the procedural shapes.
    """

    def __init__(
        self,
        options: SynthesisOptions,
        templates: Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.options = options
        self.seed = seed
        bank = (
            procedural_templates(options.size, seed) if templates is None else read_templates(templates, options.size)
        )
        self.bank: TemplateBank = bank.to(torch.device(device))

    def sample(self, generator: torch.Generator) -> Element:
        """Draw one element from a CPU generator."""

        def view() -> View:
            return View(sample_appearance(self.options, generator), sample_corruption(self.options, generator))

        return Element(sample_ensemble(len(self.bank), self.options, generator), (view(), view()))

    def apply(self, elements: Sequence[Element]) -> Synthetic:
        """Make what was drawn, as one batch on the engine's device."""
        labels = apply_ensemble(self.bank, [element.ensemble for element in elements], self.options)
        first, second = (self._view(labels, [element.views[which] for element in elements]) for which in (0, 1))
        return Synthetic(labels.to(torch.int16), (first, second))

    def _view(self, labels: Tensor, views: Sequence[View]) -> Tensor:
        x = apply_appearance(labels, [view.appearance for view in views], self.options.texture_weight)
        return apply_corruption(x, [view.corruption for view in views], self.options)

    def batch(self, indices: Sequence[int]) -> Synthetic:
        """The elements of these numbers; each is the same in whatever batch it is made."""
        return self.apply([self.sample(element_generator(self.seed, index)) for index in indices])
