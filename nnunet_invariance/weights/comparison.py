"""Comparison of the tensors in a checkpoint with those of a network: what can be copied, and why the rest cannot."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.weights.checkpoint import Checkpoint
from nnunet_invariance.weights.kernel_rules import adapt_kernel
from nnunet_invariance.weights.position_tables import fitting_positions
from nnunet_invariance.weights.transfer_report import DECODER, ENCODER, KINDS, Entry, TransferReport

SEGMENTATION = "decoder.seg_layers."
UPSAMPLING = "decoder.transpconvs."
_DECODER_STAGE = re.compile(r"(decoder\.(?:stages|transpconvs)\.)(\d+)(\..*)")


class FileTensor(NamedTuple):
    """A tensor of a file and its name in the file."""

    name: str
    value: Tensor


@dataclass
class Comparison:
    """What a transfer copies.

    Attributes:
        values: new values by the name in the network.
        matched, adapted, skipped, missing: entries of the report.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    matched: list[Entry] = field(default_factory=list)
    adapted: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)

    def report(self, checkpoint: Checkpoint, branch: str, transfer: str) -> TransferReport:
        """The report of the transfer."""
        metadata = checkpoint.metadata
        matched, adapted, skipped, missing = (tuple(getattr(self, kind)) for kind in KINDS)
        origin = (str(checkpoint.path), metadata["method"], metadata["sha256"], branch, transfer)
        return TransferReport(*origin, matched, adapted, skipped, missing)


def compare(network: nn.Module, checkpoint: Checkpoint, section: Mapping[str, Tensor], decoder: bool) -> Comparison:
    """Apply the rules of :func:`.load_pretrained` to every tensor of the file and of the network.

    Args:
        section: tensors of the requested branch, without prefix.
        decoder: whether the decoder is requested too.
    """
    prefixes = (ENCODER, *shared_prefixes(network), *([DECODER] if decoder else []))
    targets = {name: t for name, t in unique_tensors(network).items() if _is_requested(name, prefixes)}
    values = {name: FileTensor(name, t) for name, t in section.items() if _is_requested(name, prefixes)}
    result = Comparison()
    if decoder and "decoder" in checkpoint.metadata["pretrained"]:
        values = _count_from_finest(values, targets, result)
    image_layer = _image_layer(network)
    for name, target in targets.items():
        found = values.pop(name, None)
        if found is None:
            result.missing.append(_entry(name, None, target, "not in the file"))
        elif name.startswith(DECODER) and "decoder" not in checkpoint.metadata["pretrained"]:
            _reject(result, name, found, target, "decoder was not pre-trained")
        elif resized := fitting_positions(network, checkpoint, name, found.value):
            _adapt(result, name, found, target, *resized)
        elif found.value.shape == target.shape:
            origin = "name" if found.name == name else f"stage from the finest, {found.name} in the file,"
            result.matched.append(_entry(name, found.value, target, f"same {origin} and shape"))
            result.values[name] = found.value
        elif name.startswith((ENCODER, DECODER)) and (
            adapted := adapt_kernel(
                found.value,
                tuple(target.shape),
                takes_image=name == image_layer,
                transposed=name.startswith(UPSAMPLING),
            )
        ):
            _adapt(result, name, found, target, *adapted)
        else:
            _reject(result, name, found, target, "other shape")
    result.skipped += [_entry(f.name, f.value, None, "not in the network") for f in values.values()]
    return result


def shared_prefixes(network: nn.Module) -> tuple[str, ...]:
    """Prefixes of tensors beside the encoder that the network says it shares with its pre-training."""
    return tuple(getattr(network, "shared", ()))


def _is_requested(name: str, prefixes: tuple[str, ...]) -> bool:
    return name.startswith(prefixes) and not name.startswith(SEGMENTATION)


def _count_from_finest(
    values: Mapping[str, FileTensor], targets: Iterable[str], result: Comparison
) -> dict[str, FileTensor]:
    """Rename the decoder stages of the file to the stages of the same resolution in the network.

    nnU-Net numbers decoder stages from the coarsest, so that equal numbers in networks of different depth mean
    different resolutions. Stages of the file that are coarser than every stage of the network are skipped.
    """
    shift = _decoder_depth(targets) - _decoder_depth(values)
    renamed = {}
    for name, tensor in values.items():
        stage = _DECODER_STAGE.fullmatch(name)
        if stage is None:
            renamed[name] = tensor
        elif int(stage[2]) + shift < 0:
            result.skipped.append(_entry(name, tensor.value, None, "coarser than the decoder of the network"))
        else:
            renamed[f"{stage[1]}{int(stage[2]) + shift}{stage[3]}"] = tensor
    return renamed


def _decoder_depth(names: Iterable[str]) -> int:
    return len({name.split(".")[2] for name in names if name.startswith(UPSAMPLING)})


def _image_layer(network: nn.Module) -> str | None:
    """Name of the first convolution's kernel; nnU-Net's networks name the layer that takes the image."""
    modules = [f"{path}.weight" for path in getattr(network, "keys_to_in_proj", ())]
    return next((name for name in unique_tensors(network) if name in modules), None)


def _adapt(result: Comparison, name: str, found: FileTensor, target: Tensor, value: Tensor, rule: str) -> None:
    origin = "" if found.name == name else f"; {found.name} in the file"
    result.adapted.append(_entry(name, found.value, target, rule + origin))
    result.values[name] = value


def _reject(result: Comparison, name: str, found: FileTensor, target: Tensor, reason: str) -> None:
    result.skipped.append(_entry(found.name, found.value, None, reason))
    result.missing.append(_entry(name, None, target, reason))


def _entry(name: str, value: Tensor | None, target: Tensor | None, rule: str) -> Entry:
    found, wanted = (None if t is None else tuple(t.shape) for t in (value, target))
    counted = target if target is not None else value
    return Entry(name, found, wanted, rule, 0 if counted is None else counted.numel())
