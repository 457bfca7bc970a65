"""The synthesis engine: label maps with two random appearances each, made on the device where they are used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_invariance.errors import OptionError
from nnunet_invariance.synthesis.appearance import Appearance, apply_appearance, sample_appearance
from nnunet_invariance.synthesis.corruptions import Corruption, apply_corruption, sample_corruption
from nnunet_invariance.synthesis.ensembles import Ensemble, apply_ensemble, sample_ensemble
from nnunet_invariance.synthesis.formulas import formula_masks
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator, without_autocast
from nnunet_invariance.synthesis.shapes import procedural_masks
from nnunet_invariance.synthesis.templates import TemplateBank, read_templates


@dataclass(frozen=True)
class View:
    """Parameters of one view: an appearance, and the corruption by the acquisition."""

    appearance: Appearance
    corruption: Corruption


@dataclass(frozen=True)
class Element:
    """All random parameters of one element: a label map and two views of it."""

    ensemble: Ensemble
    views: tuple[View, View]


class SyntheticPairs(NamedTuple):
    """A batch of label maps with two appearances each.

    Attributes:
        labels: (B, 1, z, y, x), int16.
        first, second: (B, 1, z, y, x), float32 in [0, 1].

    >>> pairs = SyntheticPairs(torch.zeros(1), torch.ones(1), torch.ones(1))
    >>> labels, first, second = pairs
    """

    labels: Tensor
    first: Tensor
    second: Tensor

    @property
    def views(self) -> tuple[Tensor, Tensor]:
        """Both appearances."""
        return self.first, self.second


class SynthesisEngine:
    """An endless data set of synthetic elements, numbered 0, 1, 2, ... (arXiv 2411.02372).

    An element depends on its number, the seed, the options and the templates only; it is the same in every batch.

    >>> engine = SynthesisEngine()
    >>> pairs = engine(n=2, size=32, device="cpu", seed=0)
    >>> pairs.first.shape
    torch.Size([2, 1, 32, 32, 32])

    Args:
        options: size and ranges of all parameters; default: the values of the paper.
        templates: a folder of label maps whose shapes are used; default: the shapes that the options name.
        device: where the volumes are made.
        seed: of the elements and of the shapes that are made.

    Raises:
        OptionError: templates are given, and the options name shapes that are not the default.
        TemplateError: the folder contains no label maps, or one that cannot be used.
    """

    def __init__(
        self,
        options: SynthesisOptions | None = None,
        templates: Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.options = options or SynthesisOptions()
        self.templates = templates
        self.device = torch.device(device)
        self.seed = seed
        if templates is not None and self.options.shapes != "procedural":
            raise self.options.error("shapes", f"'procedural', because the shapes are those of {templates}")
        self._resized: dict[tuple[tuple[int, int, int], torch.device], SynthesisEngine] = {}
        if templates is not None:
            self.bank  # noqa: B018  read the folder now, so that its errors appear here

    @cached_property
    def bank(self) -> TemplateBank:
        """The templates, on the device."""
        if self.templates is None:
            bank = made_templates(self.options, self.seed, self.device)
        else:
            bank = read_templates(self.templates, self.options.size)
        return bank.to(self.device)

    def __call__(
        self,
        n: int = 1,
        size: int | tuple[int, int, int] | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> SyntheticPairs:
        """Make the elements 0 to ``n`` - 1.

        Args:
            n: number of elements.
            size: voxels along z, y, x, or along each axis; default: that of the options.
            device: default: the engine's.
            seed: of the elements; default: the engine's. The templates keep the engine's seed.

        Raises:
            OptionError: ``n`` is below 1, or the size does not fit.
        """
        if n < 1:
            raise OptionError(f"n is {n}; expected at least 1 element.")
        return self._with(size, device).batch(range(n), seed)

    def _with(self, size: int | tuple[int, int, int] | None, device: torch.device | str | None) -> "SynthesisEngine":
        """This engine for another size or device; engines are cached, because making their templates takes time."""
        wanted = self.options.size if size is None else (size, size, size) if isinstance(size, int) else size
        target = self.device if device is None else torch.device(device)
        if (wanted, target) == (self.options.size, self.device):
            return self
        if (wanted, target) not in self._resized:
            options = replace(self.options, size=wanted)
            self._resized[wanted, target] = SynthesisEngine(options, self.templates, target, self.seed)
        return self._resized[wanted, target]

    @without_autocast
    def sample(self, generator: torch.Generator) -> Element:
        """Sample the parameters of one element with a CPU generator."""

        def view() -> View:
            return View(sample_appearance(self.options, generator), sample_corruption(self.options, generator))

        return Element(sample_ensemble(len(self.bank), self.options, generator), (view(), view()))

    @without_autocast
    def apply(self, elements: Sequence[Element]) -> SyntheticPairs:
        """Make elements with these parameters, as one batch on the engine's device, in float32."""
        labels = apply_ensemble(self.bank, [element.ensemble for element in elements], self.options)
        first, second = (self._view(labels, [element.views[which] for element in elements]) for which in (0, 1))
        return SyntheticPairs(labels.to(torch.int16), first, second)

    def _view(self, labels: Tensor, views: Sequence[View]) -> Tensor:
        x = apply_appearance(labels, [view.appearance for view in views], self.options.texture_weight)
        return apply_corruption(x, [view.corruption for view in views], self.options)

    def batch(self, indices: Sequence[int], seed: int | None = None) -> SyntheticPairs:
        """Make the elements with these numbers; ``seed``: of the elements, default: the engine's."""
        seed = self.seed if seed is None else seed
        return self.apply([self.sample(element_generator(seed, index)) for index in indices])


def made_templates(options: SynthesisOptions, seed: int, device: torch.device | str = "cpu") -> TemplateBank:
    """A bank of procedural shapes, of shapes from formulas or of both, three quarters of the shortest side long.

    >>> len(made_templates(SynthesisOptions(size=(32, 32, 32), shapes="formula"), seed=0))
    72
    """
    side = 3 * min(options.size) // 4
    masks = procedural_masks(side, seed) if options.shapes != "formula" else []
    masks += formula_masks(side, seed, device) if options.shapes != "procedural" else []
    return TemplateBank(masks, options.size)
