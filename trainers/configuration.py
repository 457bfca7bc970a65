"""Which plans and data sets a trainer supports."""

from collections.abc import Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import UnknownConfigurationError, UnsupportedConfigurationError
from nnunet_invariance.nnunet.planned_dataset import channel_names_of
from nnunet_invariance.plans.options import BLOCK


def configuration_of(plans: dict, name: str) -> ConfigurationManager:
    """Return a configuration of plans, inherited keys included.

    Raises:
        UnknownConfigurationError
    """
    known = plans["configurations"]
    if name not in known:
        msg = f"The plans {plans['plans_name']} of {plans['dataset_name']} hold no configuration {name!r}; "
        raise UnknownConfigurationError(f"{msg}they hold {', '.join(known)}. Choose one of these.")
    return PlansManager(plans).get_configuration(name)


def check_supported(plans: dict, name: str, dimensions: Sequence[int], trainer: str) -> None:
    """Refuse cascades and other numbers of spatial dimensions.

    Raises:
        UnknownConfigurationError, UnsupportedConfigurationError
    """
    configuration = configuration_of(plans, name)
    found = len(configuration.patch_size)
    if found in dimensions and configuration.previous_stage_name is None:
        return
    what = f"{found}d" if found not in dimensions else "the second stage of a cascade"
    raise UnsupportedConfigurationError(
        f"{trainer} supports {' and '.join(f'{d}d' for d in dimensions)} configurations without a cascade, but {name} "
        f"of {plans['plans_name']} is {what}. Choose another configuration, or train this one with BaselineTrainer."
    )


def check_no_cascade(plans: dict, name: str, option: str) -> None:
    """Refuse an option in the second stage of a cascade, whose input includes the segmentation of the first stage.

    Args:
        option: the option as in the plans, for the message.

    Raises:
        UnknownConfigurationError, UnsupportedConfigurationError
    """
    if configuration_of(plans, name).previous_stage_name is not None:
        raise UnsupportedConfigurationError(
            f"{name} of {plans['plans_name']} is the second stage of a cascade, which does not support {option}. "
            f'Remove it from the plans block "{BLOCK}" of this configuration; other configurations can have it.'
        )


def check_channels(dataset_name: str, dataset_json: dict, least: int, trainer: str) -> None:
    """Refuse data sets with fewer than ``least`` channels.

    Raises:
        UnsupportedConfigurationError
    """
    names = channel_names_of(dataset_json)
    if len(names) < least:
        found = f"one channel, {names[0]}" if len(names) == 1 else f"the channels {', '.join(names)}"
        raise UnsupportedConfigurationError(
            f"{dataset_name} has {found}; {trainer} needs at least {counted(least, 'channel')} per case. "
            "Train this data set with another trainer."
        )


def encoder_of(network: nn.Module, trainer: str) -> Any:
    """Return the encoder of a planned U-Net, which has the channels and strides of its stages.

    Raises:
        UnsupportedConfigurationError: the plans name a network of another kind.
    """
    encoder = getattr(network, "encoder", None)
    if hasattr(encoder, "output_channels") and hasattr(encoder, "strides"):
        return encoder
    raise UnsupportedConfigurationError(
        f"{trainer} needs a network whose encoder has stages, such as PlainConvUNet or ResidualEncoderUNet, but the "
        f"plans name {type(network).__name__}. Use plans with one of these, or BaselineTrainer."
    )
