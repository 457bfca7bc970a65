"""Bringing pre-trained weights into a trainer's network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_invariance.plans.options import TrainerOptions
from nnunet_invariance.weights import transfer
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import FoundWeights, find_weights
from nnunet_invariance.weights.modality_tables import in_channel_order
from nnunet_invariance.weights.transfer import SECTION_OF, check_method


def find_and_load_weights(
    network: nn.Module, method: str, names: tuple[str, str, str], options: TrainerOptions, log: Callable[[str], None]
) -> dict[str, Any]:
    """Find the weights of a method and inject them; the place and the transfer report in native types.

    Args:
        network: the planned one, without wrappers.
        names: of dataset, plans and configuration.
        log: called with the choice and with the report.

    Raises:
        WeightsNotFoundError: no place holds weights, or one names a file that is not there.
        WeightsIncompatibleError: another method or architecture, or too little coverage.
        CheckpointCorruptError: the file is not what it should be.
    """

    def fits(path: Path) -> bool:
        checkpoint = load_checkpoint(path, [SECTION_OF[options.branch]])
        return transfer.can_load(network, checkpoint, **_rules(options))

    return load_checkpoint_into(network, find_weights(method, *names, options.checkpoint, fits), options, log, method)


def load_checkpoint_into(
    network: nn.Module,
    found: FoundWeights,
    options: TrainerOptions,
    log: Callable[[str], None],
    method: str | None = None,
    channels: Sequence[str] = (),
) -> dict[str, Any]:
    """Inject weights from a place that is known; those of any method where ``method`` is None.

    With ``channels``, the network's tables of modalities are filled by these names.

    Raises:
        WeightsIncompatibleError, CheckpointCorruptError: as :func:`find_and_load_weights`.
    """
    log(f"Weights: {found.path} ({found.location})")
    checkpoint = load_checkpoint(found.path, [SECTION_OF[options.branch]])
    if method is not None:
        check_method(checkpoint, method)
    if channels:
        checkpoint = in_channel_order(checkpoint, channels, network.table)
    report = transfer.load_pretrained(network, checkpoint, **_rules(options))
    log(report.to_text())
    return {"location": found.location, **report.to_dict()}


def _rules(options: TrainerOptions) -> dict[str, Any]:
    return {"transfer": options.transfer, "branch": options.branch, "min_coverage": options.min_coverage}


def versions(network: nn.Module) -> list[int]:
    """Autograd's counters of in-place changes of each parameter: whoever loads a state dict raises them."""
    return [parameter._version for parameter in network.parameters()]
