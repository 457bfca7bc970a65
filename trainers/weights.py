"""Loading pre-trained weights into a trainer's network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from nnunet_invariance.plans.options import PretrainedOptions
from nnunet_invariance.weights import transfer
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint
from nnunet_invariance.weights.locate import FoundWeights, find_weights
from nnunet_invariance.weights.transfer import SECTION_OF, check_method

Branch = Literal["teacher", "student"]


def unchanged(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint as it is."""
    return checkpoint


def find_and_load_weights(
    network: nn.Module,
    method: str,
    names: tuple[str, str, str],
    options: PretrainedOptions,
    log: Callable[[str], None],
    adapt: Callable[[Checkpoint], Checkpoint] = unchanged,
) -> dict[str, Any]:
    """Find the weights of a method and load them; returns location and transfer report in built-in types.

    Args:
        network: the planned one, without wrappers.
        names: of data set, plans and configuration.
        log: called with the location and with the report.
        adapt: changes the checkpoint before its weights are loaded.

    Raises:
        WeightsNotFoundError: no location contains weights, or one names a file that does not exist.
        WeightsIncompatibleError: another method or architecture, or too little coverage.
        CheckpointCorruptError: the file is damaged.
    """

    def fits(path: Path) -> bool:
        checkpoint, branch = _load(path, options)
        return transfer.can_load(network, adapt(checkpoint), **_rules(options, branch), allow_deeper_network=True)

    found = find_weights(method, *names, options.checkpoint, fits)
    return load_checkpoint_into(network, found, options, log, method, adapt)


def load_checkpoint_into(
    network: nn.Module,
    found: FoundWeights,
    options: PretrainedOptions,
    log: Callable[[str], None],
    method: str | None = None,
    adapt: Callable[[Checkpoint], Checkpoint] = unchanged,
) -> dict[str, Any]:
    """Load weights from a known location; those of any method if ``method`` is None.

    Raises:
        WeightsIncompatibleError, CheckpointCorruptError: as :func:`find_and_load_weights`.
    """
    log(f"Weights: {found.path} ({found.location})")
    checkpoint, branch = _load(found.path, options)
    if method is not None:
        check_method(checkpoint, method)
    rules = _rules(options, branch)
    report = transfer.load_pretrained(network, adapt(checkpoint), **rules, allow_deeper_network=found.shipped)
    log(report.to_text())
    return {"location": found.location, **report.to_dict()}


def _load(path: Path, options: PretrainedOptions) -> tuple[Checkpoint, Branch]:
    """A checkpoint with the networks that can be loaded, and the branch that is."""
    checkpoint = load_checkpoint(path, list(SECTION_OF.values()))
    return checkpoint, options.branch or transfer.default_branch(checkpoint)


def _rules(options: PretrainedOptions, branch: Branch) -> dict[str, Any]:
    return {"transfer": options.transfer, "branch": branch, "min_coverage": options.min_coverage}


def parameter_versions(network: nn.Module) -> list[int]:
    """Autograd's counters of in-place changes of each parameter; loading a state dict increases them."""
    return [parameter._version for parameter in network.parameters()]
