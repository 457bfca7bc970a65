"""Which configurations of a plans file a trainer takes."""

from collections.abc import Sequence

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_invariance.errors import UnknownConfigurationError, UnsupportedConfigurationError


def configuration_of(plans: dict, name: str) -> ConfigurationManager:
    """A configuration of plans, inherited keys included.

    Raises:
        UnknownConfigurationError
    """
    known = plans["configurations"]
    if name not in known:
        msg = f"The plans {plans['plans_name']} of {plans['dataset_name']} hold no configuration {name!r}; "
        raise UnknownConfigurationError(f"{msg}they hold {', '.join(known)}. Name one of these.")
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
        f"of {plans['plans_name']} is {what}. Take another configuration, or train this one with BaselineTrainer."
    )


def encoder_of(network: nn.Module, trainer: str) -> nn.Module:
    """The encoder of a planned U-Net, which says the channels and strides of its stages.

    Raises:
        UnsupportedConfigurationError: the plans name a network of another kind.
    """
    encoder = getattr(network, "encoder", None)
    if hasattr(encoder, "output_channels") and hasattr(encoder, "strides"):
        return encoder
    raise UnsupportedConfigurationError(
        f"{trainer} needs a network with an encoder of stages, as PlainConvUNet and ResidualEncoderUNet have, but the "
        f"plans name {type(network).__name__}. Take plans with one of these, or BaselineTrainer."
    )
