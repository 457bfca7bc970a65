"""What an importer hands over, and the checks that make its tensors those of a network that nnU-Net can plan."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.networks.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.anatomix_unet import DESIGNS, arch_kwargs
from nnunet_invariance.networks.anatomix_unet import NETWORK as ANATOMIX
from nnunet_invariance.networks.nnformer import NNFORMER
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.networks.primus import NETWORK as PRIMUS_NETWORK
from nnunet_invariance.networks.puir_swin import NETWORK as PUIR_SWIN_NETWORK
from nnunet_invariance.networks.swin_unetr import NETWORK as SWIN_NETWORK
from nnunet_invariance.weights.checkpoint import tensor_bytes
from nnunet_invariance.weights.report import DECODER, ENCODER, shortened
from nnunet_invariance.weights.transfer import SEGMENTATION

CLASSES = {
    name: f"dynamic_network_architectures.architectures.unet.{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet")
}
SWIN, PUIR_SWIN, PRIMUS = "SwinUNETR", "PUIRSwinUNETR", "Primus"
#: Network classes of ours that check their own arguments.
OURS = {
    NNFORMER: f"nnunet_invariance.networks.nnformer.{NNFORMER}",
    SWIN: SWIN_NETWORK,
    PUIR_SWIN: PUIR_SWIN_NETWORK,
    PRIMUS: PRIMUS_NETWORK,
}
CLASSES |= OURS
_LAYER = re.compile(r"torch\.nn\.(modules\.[a-z]+\.)?[A-Z]\w*")
_WRAPPERS = ("module.", "_orig_mod.")
MOST_STAGES, LARGEST = 12, 4096
MOST_VALUES, DEEPEST = 100_000, 40


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of another tool, before its tensors are checked.

    Attributes:
        state: names as in nnU-Net's ``state_dict()``, aliases allowed.
        architecture: checked by :func:`architecture_of`.
        facts: ``dataset_name``, ``plans_name``, ``configuration``, ``data_identifier``, ``spacing``, ``patch_size``,
            ``channel_names``, ``normalization_schemes`` and ``plans`` (the configuration), in JSON's types.
        epochs: how long it was trained; None where the file does not say.
        citation: what its authors ask to be cited.
        method: whose trainer takes the weights; None where it is none's in particular, and the source is named instead.
        notes: what else should be kept, for the options of the imported file.
        heads: what stands beside the encoder of an anatomical embedding, by our names.
    """

    state: dict[str, Tensor]
    architecture: Architecture
    facts: dict[str, Any]
    epochs: int | None = None
    citation: str = "none given in the file"
    method: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)


def facts_without_plans(
    patch_size: Sequence[int], channel_names: Sequence[str], normalization_schemes: Sequence[str] = ()
) -> dict[str, Any]:
    """The facts of a network from a tool without plans; ``patch_size`` in voxels is what its authors used."""
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


def architecture_of(path: Path, entry: Mapping[str, Any], channels: int, classes: int) -> Architecture:
    """An architecture that a foreign file describes, where it is one that our trainers can use.

    The file decides which classes are imported and called, so only nnU-Net's two U-Nets, network classes of ours and
    layers of ``torch.nn`` in sizes within reason are accepted.

    Args:
        entry: ``network_class_name`` (a bare name will do), ``arch_kwargs``, ``_kw_requires_import``.

    Raises:
        WeightsIncompatibleError: another network. CheckpointCorruptError: arguments that no plans would hold.
    """
    name = str(entry["network_class_name"]).rsplit(".", 1)[-1]
    if entry["network_class_name"] == ANATOMIX:
        return _anatomix(path, entry, channels, classes)
    if name not in CLASSES:
        msg = f"{path} holds a {name}, which none of our trainers can use: they take {', '.join(CLASSES)}. "
        raise WeightsIncompatibleError(msg + "Train it with the tool that made it.")
    arguments, required = plain(path, entry["arch_kwargs"]), tuple(plain(path, entry["_kw_requires_import"]))
    for key in required:
        value = arguments.get(key)
        if value is not None and not (isinstance(value, str) and _LAYER.fullmatch(value)):
            raise _strange(path, f"argument {key!r} of its network is {value!r}", "a layer of torch.nn")
    stages = arguments.get("n_stages")
    if not isinstance(stages, int) or not 2 <= stages <= MOST_STAGES:
        raise _strange(path, f"its network has {stages!r} stages", f"2 to {MOST_STAGES}")
    keys = ("strides",) if name in OURS else ("strides", "kernel_sizes")
    if not all(stride >= 1 for key in keys for stride in _numbers(arguments.get(key, [0]))):
        raise _strange(path, "its strides or kernels are not lists of whole numbers", "at least 1 on each axis")
    largest = max(_numbers([arguments, channels, classes]))
    if not largest <= LARGEST:
        raise _strange(path, f"its network has an argument of {largest}", f"at most {LARGEST}")
    return Architecture(CLASSES[name], arguments, required, channels, classes)


def _anatomix(path: Path, entry: Mapping[str, Any], channels: int, classes: int) -> Architecture:
    """Our network class of the anatomix U-Nets, whose arguments are names of a fixed list."""
    arguments = plain(path, entry["arch_kwargs"])
    variant, rule = arguments.get("variant"), arguments.get("channels")
    if variant not in DESIGNS or rule not in ("averaged", "separate") or not 1 <= max(channels, classes) <= LARGEST:
        found = f"its network is an anatomix U-Net {variant!r} with channels {rule!r}"
        raise _strange(path, found, f"one of {', '.join(DESIGNS)}, channels 'averaged' or 'separate'")
    return Architecture(ANATOMIX, arch_kwargs(variant, rule), (), channels, classes)


def plain(path: Path, value: Any) -> Any:
    """A copy in JSON's types; NumPy numbers and arrays become Python's own.

    Raises:
        CheckpointCorruptError: another type, or more values than plans ever hold.
    """
    budget = [MOST_VALUES]

    def copy(item: Any, depth: int) -> Any:
        budget[0] -= 1
        if budget[0] < 0 or depth > DEEPEST:
            raise _strange(path, "its plans unfold without end", f"at most {MOST_VALUES:,} values")
        if item is None or type(item) in (bool, int, float, str):
            return item
        if isinstance(item, Mapping):
            return {str(key): copy(entry, depth + 1) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [copy(entry, depth + 1) for entry in item]
        if hasattr(item, "tolist") and not isinstance(item, Tensor):
            return copy(item.tolist(), depth + 1)
        raise _strange(path, f"its plans hold a {type(item).__name__}", "numbers, text, lists and dictionaries")

    return copy(value, 0)


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefixes that DDP and ``torch.compile`` put before every name."""
    state = dict(state)
    while prefix := next((p for p in _WRAPPERS if state and all(str(k).startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def classes_of(state: Mapping[str, Tensor]) -> int:
    """Output channels, from the last segmentation layer; 1 where there is none."""
    heads = [tensor.shape[0] for name, tensor in state.items() if name.startswith(SEGMENTATION) and tensor.ndim > 1]
    return heads[-1] if heads else 1


def own_tensors(path: Path, network: ForeignNetwork) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors by the names of ``named_parameters()``, what is really there, and what was left out.

    nnU-Net's networks name a tensor several times (``conv`` and ``all_modules.0``, and the encoder inside the decoder).
    Names of one tensor must agree bit by bit: which of them a loader believes depends on their order.

    Returns:
        tensors, ``["encoder"]`` or ``["encoder", "decoder"]``, names in the file that the network lacks.

    Raises:
        WeightsIncompatibleError: the encoder lacks tensors or has others. CheckpointCorruptError: names disagree, or
            values are not finite numbers.
    """
    target = _skeleton(path, network.architecture)
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
            msg = f"{path} holds two values of {own}, which is also named {alias}. "
            raise CheckpointCorruptError(msg + "It was edited by halves: take the file as its authors released it.")
    encoder, decoder = (_fitting(wanted, found, part) for part in (ENCODER, DECODER))
    if encoder is None:
        raise _incomplete(path, wanted, found)
    if not decoder:
        left_out += [name for name in found if name.startswith(DECODER)]
        return encoder, ["encoder"], left_out
    return {**encoder, **decoder}, ["encoder", "decoder"], left_out


def own_heads(path: Path, network: ForeignNetwork) -> dict[str, Tensor]:
    """The heads of an anatomical embedding, all of them and in their shapes; empty where a network has none to have.

    Raises:
        WeightsIncompatibleError: one is missing or of another shape. CheckpointCorruptError: values not finite.
    """
    if not network.heads:
        return {}
    encoder = _skeleton(path, network.architecture).encoder
    with torch.device("meta"):
        wanted = unique_tensors(EmbeddingHead(encoder.output_channels, encoder.strides))
    found = network.heads
    differ = [n for n in {**wanted, **found} if n not in wanted or n not in found or wanted[n].shape != found[n].shape]
    if differ:
        msg = f"{path} does not hold the heads of an anatomical embedding as published; these differ:\n"
        raise WeightsIncompatibleError(msg + "\n".join(shortened([f"  {name}" for name in differ])))
    return {name: _checked(path, name, tensor, wanted[name]) for name, tensor in found.items()}


def _skeleton(path: Path, architecture: Architecture) -> nn.Module:
    """The network without memory for its values: the file decides how large it is."""
    try:
        with torch.device("meta"):
            return architecture.build()
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError) as error:
        what = f"its network cannot be built ({type(error).__name__}: {error})"
        raise _strange(path, what, "arguments that its class takes") from error


def _checked(path: Path, name: str, tensor: Any, wanted: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _strange(path, f"{name} is a {type(tensor).__name__}", "a tensor")
    if wanted.is_floating_point() and not tensor.is_floating_point():
        raise _strange(path, f"{name} holds {tensor.dtype}", "floating-point numbers")
    if tensor.is_floating_point() and not wanted.is_floating_point():  # indices, and batch norm's count of batches
        raise _strange(path, f"{name} holds {tensor.dtype}", "whole numbers")
    if not tensor.isfinite().all():
        raise _strange(path, f"{name} holds NaN or infinite values", "finite numbers")
    return tensor


def _fitting(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], part: str) -> dict[str, Tensor] | None:
    """The tensors of encoder or decoder; None unless each is there in its shape (segmentation layers may differ)."""
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
    msg = f"{path} does not hold the encoder that its plans describe:\n" + "\n".join(shortened(lines))
    return WeightsIncompatibleError(msg + "\nGive the plans that it was trained with.")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _strange(path: Path, found: str, expected: str) -> CheckpointCorruptError:
    msg = f"{path} cannot be imported: {found}; expected {expected}. "
    return CheckpointCorruptError(msg + "Take the file as its authors released it.")
