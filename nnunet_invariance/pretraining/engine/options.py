"""Options of the pre-training loop, and the base class of the options of a method."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from nnunet_invariance.common.options import Options, choice, count, flag, is_int, number, option
from nnunet_invariance.errors import OptionError

OptionsT = TypeVar("OptionsT", bound="MethodOptions")
LARGEST_SEED = 2**32 - 1
#: Weight decay if neither the user nor the method says otherwise.
WEIGHT_DECAY = 0.04


def default_lr(steps: int) -> float:
    r"""Peak learning rate of a run: :math:`10^{-4} \sqrt{10^5 / T}`, at most :math:`10^{-3}`.

    >>> [default_lr(steps) for steps in (100, 1_000, 100_000)]
    [0.001, 0.001, 0.0001]
    """
    return min(1e-3, 1e-4 * math.sqrt(1e5 / steps))


def automatic_number(doc: str, low_excluded: bool = False) -> Any:
    """A non-negative number whose default None means that the method or the loop chooses it."""
    bound = number(0.0, 0, float("inf"), low_excluded=low_excluded)
    accepts = bound.metadata["accepts"]
    expected = f"{bound.metadata['expected']}, or None for an automatic choice"
    return option(None, expected, lambda value: value is None or accepts(value), doc)


def by_steps(rule: Callable[[int], float], low: float, high: float, doc: str) -> Any:
    """A number in [``low``, ``high``] whose default None is replaced by ``rule`` of the number of optimiser steps."""
    bound = number(None, low, high, optional=True, doc=doc)
    return field(default=None, metadata={**bound.metadata, "rule": rule})


@dataclass(frozen=True)
class LoopOptions(Options):
    """Options that every method shares.

    Raises:
        OptionError: a value is out of range.

    >>> LoopOptions(epochs=2, iterations=10).steps
    20
    """

    epochs: int = count(400, 1, doc="Number of epochs.")
    iterations: int = count(250, 1, doc="Optimiser steps per epoch; the state is saved after every epoch.")
    seed: int = option(
        0, f"a whole number from 0 to {LARGEST_SEED}", lambda v: is_int(v) and 0 <= v <= LARGEST_SEED,
        "Seed of initialisation, data and augmentation.",
    )  # fmt: skip
    lr: float | None = automatic_number(
        "Peak learning rate of AdamW; None: the method's default, or by the number of steps T: 1e-4 * sqrt(1e5 / T), "
        "at most 1e-3.",
        low_excluded=True,
    )
    lr_end: float = number(1e-6, 0, float("inf"), doc="Last learning rate, at the end of a cosine.")
    warmup: float = number(0.05, 0, 1, doc="Fraction of the steps in which the rate rises linearly to lr.")
    weight_decay: float | None = automatic_number(
        "Weight decay of matrices and kernels, never of vectors; None: 0.04, or the method's default."
    )
    grad_clip_norm: float = number(
        3.0, 0, float("inf"), low_excluded=True, doc="Largest norm of the whole gradient."
    )  # fmt: skip
    grad_accum_steps: int = count(1, 1, doc="Batches whose gradients are averaged for one optimiser step.")
    workers: int = count(2, 0, doc="Processes that load data; 0 loads in the main process.")
    timeout: float = number(
        1800.0, 0, float("inf"), low_excluded=True,
        doc="Seconds without an answer from a data worker or another rank after which the run ends.",
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16", "fp16"] = choice(
        "auto", "fp32", "bf16", "fp16",
        doc="Arithmetic of the networks; auto: bf16 on CUDA (fp16 with a loss scale if the device has no bf16), "
        "else fp32.",
    )  # fmt: skip
    compile: bool = flag(False, doc="Whether torch.compile compiles the method's forward pass.")
    patience: float = number(
        0.0, 0, 1, doc="Fraction of the epochs without a lower held-out loss after which the run ends; 0: never."
    )

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.iterations

    @property
    def peak_lr(self) -> float:
        """The peak learning rate in force."""
        return default_lr(self.steps) if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay in force."""
        return WEIGHT_DECAY if self.weight_decay is None else self.weight_decay

    def resolve(self, defaults: Mapping[str, Any]) -> "LoopOptions":
        """Replace every None by the method's default, or by that of the loop.

        >>> LoopOptions().resolve({"lr": 2e-4}).lr
        0.0002
        """
        known = {"lr": self.peak_lr, "weight_decay": self.decay, **defaults}
        return replace(self, **{name: value for name, value in known.items() if getattr(self, name) is None})


@dataclass(frozen=True)
class MethodOptions(Options):
    """Base of the options of a method. No field may have the name of a field of :class:`LoopOptions`.

    >>> MethodOptions().presets
    {}
    """

    #: Values of several fields under one name, for ``--set preset=NAME`` and :meth:`from_preset`.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: The preset of a planned network if none is given, by the class name of the network.
    preset_of_network: ClassVar[Mapping[str, str]] = {}

    def resolve(self: OptionsT, steps: int) -> OptionsT:
        """Replace every None of a field of :func:`by_steps` by the value for a run of this length."""
        rules = {item.name: item.metadata["rule"] for item in fields(self) if "rule" in item.metadata}
        return replace(self, **{name: rule(steps) for name, rule in rules.items() if getattr(self, name) is None})

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> "MethodOptions":
        """The options of a preset, with single fields changed.

        Raises:
            OptionError: there is no preset of that name.
        """
        if preset not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise OptionError(f"preset={preset}: expected one of the presets of {cls.__name__}: {known}. Correct it.")
        return cls(**{**cls.presets[preset], **changes})
