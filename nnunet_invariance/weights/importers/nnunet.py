"""Importer of checkpoints of nnU-Net v2, whose plans are in ``init_args``."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.weights.importers.network import ForeignNetwork, classes_of, without_wrappers
from nnunet_invariance.weights.trusted_architecture import architecture_of, plain

DESCRIPTION = "a checkpoint of nnU-Net v2"
KEYS = ("network_weights", "init_args", "trainer_name")
CITATION = "Isensee et al., Nature Methods 18, 2021"


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    return all(key in content for key in KEYS)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The network of the file; ``plans`` and ``configuration`` are ignored, because the file has its own.

    Raises:
        WeightsIncompatibleError, CheckpointCorruptError
    """
    arguments = content["init_args"]
    own, name = arguments.get("plans"), arguments.get("configuration")
    state = without_wrappers(content["network_weights"])
    dataset = arguments.get("dataset_json") or {}
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    network = from_plans(path, state, plain(path, own), str(name), names)
    notes = {"trainer": str(content["trainer_name"])}
    return replace(network, epochs=int(content["current_epoch"]), citation=CITATION, notes=notes)


def from_plans(
    path: Path, state: dict[str, Any], plans: Mapping[str, Any], configuration: str, channel_names: list[str]
) -> ForeignNetwork:
    """The network of a state dict and its plans, of any version of nnU-Net v2.

    Raises:
        WeightsIncompatibleError: our trainers cannot use the network. CheckpointCorruptError: malformed plans.
    """
    entry = PlansManager(dict(plans)).get_configuration(configuration).configuration
    schemes = entry["normalization_schemes"]
    names = channel_names or [f"channel {i}" for i in range(len(schemes))]
    facts = {
        "dataset_name": plans["dataset_name"],
        "plans_name": plans["plans_name"],
        "configuration": configuration,
        "data_identifier": entry["data_identifier"],
        "spacing": entry["spacing"],
        "patch_size": entry["patch_size"],
        "normalization_schemes": schemes,
        "channel_names": names,
        "plans": entry,
    }
    return ForeignNetwork(state, architecture_of(path, entry["architecture"], len(names), classes_of(state)), facts)
