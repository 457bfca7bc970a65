"""Read and check the options block of a plans file: ``plans["configurations"][c]["nnunet_invariance"]``."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from nnunet_invariance.errors import OptionError
from nnunet_invariance.plans.options import (
    BLOCK,
    AnatomixTrainerOptions,
    AuxiliaryLossOptions,
    BaselineOptions,
    ChannelDropoutOptions,
    DenseContrastOptions,
    EncoderDecoderOptions,
    PretrainedOptions,
    PUIRTrainerOptions,
    TransferOptions,
)
from nnunet_invariance.plans.style_options import ICMSegTrainerOptions, MaskGenTrainerOptions, StyleOptions
from nnunet_invariance.plans.values import require_known

#: Every options class of a trainer; a plans copy may hold fields of all of them.
OPTIONS: tuple[type[BaselineOptions], ...] = (
    BaselineOptions,
    ChannelDropoutOptions,
    PretrainedOptions,
    TransferOptions,
    EncoderDecoderOptions,
    AuxiliaryLossOptions,
    DenseContrastOptions,
    AnatomixTrainerOptions,
    StyleOptions,
    ICMSegTrainerOptions,
    MaskGenTrainerOptions,
    PUIRTrainerOptions,
)

OptionsType = TypeVar("OptionsType", bound=BaselineOptions)


def read_options(cls: type[OptionsType], configuration: Mapping[str, Any]) -> OptionsType:
    """Read the block of one configuration; a missing field has its default.

    A trainer ignores fields that only other trainers have, because all trainers of a comparison share one plans copy.

    Args:
        cls: options class of the trainer.
        configuration: ``plans["configurations"][c]``, inherited keys included.

    Raises:
        OptionError: a field is unknown, of the wrong type or out of range.

    >>> read_options(BaselineOptions, {"nnunet_invariance": {"seed": 2, "aux": False}}).seed
    2
    """
    block = configuration.get(BLOCK, {})
    if not isinstance(block, Mapping):
        msg = f"The plans block {BLOCK!r} is {block!r}; expected an object with options. Correct it in your plans copy."
        raise OptionError(msg)
    own = {item.name for item in dataclasses.fields(cls)}
    known = {item.name for options in OPTIONS for item in dataclasses.fields(options)}
    require_known(block, known, f"in the plans block {BLOCK!r}")
    return cls(**{name: value for name, value in block.items() if name in own})


def check_block(configuration: Mapping[str, Any]) -> None:
    """Check the block of one configuration against the options of every trainer.

    Raises:
        OptionError: a field is unknown, of the wrong type or out of range.

    >>> check_block({"nnunet_invariance": {"seed": 2, "style": "gin"}})
    """
    for cls in OPTIONS:
        read_options(cls, configuration)
