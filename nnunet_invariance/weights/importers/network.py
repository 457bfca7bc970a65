"""Result of an importer, and the checks that turn its tensors into those of a network that nnU-Net can build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.weights.checkpoint import tensor_bytes
from nnunet_invariance.weights.comparison import SEGMENTATION
from nnunet_invariance.weights.transfer_report import DECODER, ENCODER, shortened
from nnunet_invariance.weights.trusted_architecture import malformed, skeleton

UNKNOWN_CITATION = "none given in the file"
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of another tool, before its tensors are checked.

    Attributes:
        state: names as in nnU-Net's ``state_dict()``; aliases are allowed.
        architecture: checked by :func:`.architecture_of`.
        facts: ``dataset_name``, ``plans_name``, ``configuration``, ``data_identifier``, ``spacing``, ``patch_size``,
            ``channel_names``, ``normalization_schemes`` and ``plans`` (the configuration), in JSON's types.
        epochs: length of the training; None if the file does not say it.
        citation: the publication that the authors ask users to cite.
        method: pre-training method whose trainer may load the weights; None if only a trainer for any weights may.
        notes: further facts, which go into the options of the imported checkpoint.
        heads: heads of an anatomical embedding, by our names.

    >>> planned = Architecture("PlainConvUNet", {}, (), 1, 2)
    >>> ForeignNetwork({}, planned, {}).citation
    'none given in the file'
    """

    state: dict[str, Tensor]
    architecture: Architecture
    facts: dict[str, Any]
    epochs: int | None = None
    citation: str = UNKNOWN_CITATION
    method: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)


def facts_without_plans(
    patch_size: Sequence[int], channel_names: Sequence[str], normalization_schemes: Sequence[str] = ()
) -> dict[str, Any]:
    """The facts of a network from a tool without plans; ``patch_size`` in voxels is that of its training."""
    unknown = dict.fromkeys(("dataset_name", "plans_name", "data_identifier"), "not said in the file")
    return {
        **unknown,
        "configuration": "3d_fullres",
        "spacing": None,
        "patch_size": list(patch_size),
        "normalization_schemes": list(normalization_schemes),
        "channel_names": list(channel_names),
        "plans": {},
    }


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state without the prefixes that DDP and ``torch.compile`` add to every name."""
    state = dict(state)
    while prefix := next((p for p in _WRAPPERS if state and all(str(k).startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def classes_of(state: Mapping[str, Tensor]) -> int:
    """Number of output channels, from the last segmentation layer; 1 if there is none."""
    heads = [tensor.shape[0] for name, tensor in state.items() if name.startswith(SEGMENTATION) and tensor.ndim > 1]
    return heads[-1] if heads else 1


def own_tensors(path: Path, network: ForeignNetwork) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors by the names of ``named_parameters()``, the complete parts of the network, and the unused names.

    nnU-Net's networks name a tensor several times (``conv`` and ``all_modules.0``, and the encoder inside the decoder).
    All values of one tensor must be equal bit by bit, because the order of the names decides which one a loader uses.

    Returns:
        tensors, ``["encoder"]`` or ``["encoder", "decoder"]``, and names in the file that the network lacks.

    Raises:
        WeightsIncompatibleError: the encoder is not complete. CheckpointCorruptError: the values of one tensor differ,
            or are not finite numbers.
    """
    target = skeleton(path, network.architecture)
    wanted = unique_tensors(target)
    canonical = {id(tensor): name for name, tensor in wanted.items()}
    aliases = {alias: canonical[id(tensor)] for alias, tensor in target.state_dict(keep_vars=True).items()}
    found: dict[str, Tensor] = {}
    left_out = [name for name in network.state if name not in aliases]
    for alias, tensor in network.state.items():
        if alias not in aliases:
            continue
        own = aliases[alias]
        tensor = _checked(path, alias, tensor, wanted[own])
        if own not in found:
            found[own] = tensor
        elif found[own].shape != tensor.shape or tensor_bytes(found[own]) != tensor_bytes(tensor):
            msg = f"{path} contains two values of {own}, which is also named {alias}. "
            raise CheckpointCorruptError(msg + "It was edited incompletely: use the file as its authors released it.")
    encoder, decoder = (_fitting(wanted, found, part) for part in (ENCODER, DECODER))
    if encoder is None:
        raise _incomplete(path, wanted, found)
    if not decoder:
        left_out += [name for name in found if name.startswith(DECODER)]
        return encoder, ["encoder"], left_out
    return {**encoder, **decoder}, ["encoder", "decoder"], left_out


def own_heads(path: Path, network: ForeignNetwork) -> dict[str, Tensor]:
    """The heads of an anatomical embedding, checked to be complete; empty for other networks.

    Raises:
        WeightsIncompatibleError: a tensor is missing or has another shape. CheckpointCorruptError: values not finite.
    """
    if not network.heads:
        return {}
    encoder = skeleton(path, network.architecture).encoder
    with torch.device("meta"):
        wanted = unique_tensors(EmbeddingHead(encoder.output_channels, encoder.strides))
    found = network.heads
    differ = [n for n in {**wanted, **found} if n not in wanted or n not in found or wanted[n].shape != found[n].shape]
    if differ:
        msg = f"{path} does not contain the heads of an anatomical embedding as published; these differ:\n"
        raise WeightsIncompatibleError(msg + "\n".join(shortened([f"  {name}" for name in differ])))
    return {name: _checked(path, name, tensor, wanted[name]) for name, tensor in found.items()}


def _checked(path: Path, name: str, tensor: Any, wanted: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise malformed(path, f"{name} is a {type(tensor).__name__}", "a tensor")
    if wanted.is_floating_point() and not tensor.is_floating_point():
        raise malformed(path, f"{name} has dtype {tensor.dtype}", "floating-point numbers")
    if tensor.is_floating_point() and not wanted.is_floating_point():  # indices and counters
        raise malformed(path, f"{name} has dtype {tensor.dtype}", "whole numbers")
    if not tensor.isfinite().all():
        raise malformed(path, f"{name} has NaN or infinite values", "finite numbers")
    return tensor


def _fitting(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], part: str) -> dict[str, Tensor] | None:
    """The tensors of encoder or decoder; None if one (except of segmentation layers) is missing or does not fit."""
    names = [name for name in wanted if name.startswith(part)]
    fits = {name for name in names if name in found and found[name].shape == wanted[name].shape}
    if any(name not in fits and not name.startswith(SEGMENTATION) for name in names):
        return None
    return {name: found[name] for name in names if name in fits}


def _incomplete(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> WeightsIncompatibleError:
    lines = []
    for name in (n for n in wanted if n.startswith(ENCODER)):
        if name not in found:
            lines.append(f"  {name}: not in the file")
        elif found[name].shape != wanted[name].shape:
            shapes = [list(t.shape) for t in (found[name], wanted[name])]
            lines.append(f"  {name}: {shapes[0]} in the file, {shapes[1]} by its plans")
    msg = f"{path} does not contain the encoder that its plans describe:\n" + "\n".join(shortened(lines))
    return WeightsIncompatibleError(msg + "\nGive the plans of its training.")
