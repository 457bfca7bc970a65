"""Bringing pre-trained weights into a planned network, by stated rules and with a report of every tensor."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.registry import ANY_METHOD
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint, tensor_bytes
from nnunet_invariance.weights.position_tables import fitting_positions
from nnunet_invariance.weights.transfer_report import DECODER, ENCODER, KINDS, Entry, TransferReport, shortened

SEGMENTATION = "decoder.seg_layers."
UPSAMPLING = "decoder.transpconvs."
SECTION_OF = {"teacher": "teacher", "student": "network"}


def load_network(
    path: str | os.PathLike, branch: Literal["teacher", "student"] | None = None
) -> tuple[Checkpoint, Literal["teacher", "student"]]:
    """A checkpoint with one of its networks alone, and which it is; not asked for one, the teacher where there is one.

    Raises:
        WeightsIncompatibleError: it holds no such network. WeightsNotFoundError, CheckpointCorruptError
    """
    whole = load_checkpoint(path, SECTION_OF.values())
    chosen = branch or ("teacher" if whole.section(SECTION_OF["teacher"]) else "student")
    prefix = f"{SECTION_OF[chosen]}."
    tensors = {name: tensor for name, tensor in whole.tensors.items() if name.startswith(prefix)}
    if not tensors:
        other = "student" if chosen == "teacher" else "teacher"
        raise WeightsIncompatibleError(f"{whole.path} holds no {chosen}. Ask for its {other}: --branch {other}.")
    return replace(whole, tensors=tensors), chosen


def load_pretrained(
    network: nn.Module,
    checkpoint: Checkpoint,
    *,
    transfer: Literal["encoder", "encoder+decoder"] = "encoder",
    branch: Literal["teacher", "student"] = "teacher",
    min_coverage: float = 1.0,
) -> TransferReport:
    """Copy pre-trained tensors into a network; nothing is copied unless everything can be.

    Rules, in this order, per tensor of the network. Same name and shape: matched. First convolution with another number
    of input channels: adapted, ``w'[o, c] = sum_i w[o, i] / C'``, which answers to C' equal channels as before. Kernel
    of the encoder with one tap on an axis where the other has k (odd): adapted, k -> 1 by the sum over the taps, which
    answers to what is constant along the axis as before; 1 -> k in the centre, the same function exactly. Table of
    positions of another patch: adapted, trilinearly. Any other
    shape: skipped in the file and missing in the network. Only in the file: skipped. Only in the network:
    missing. Segmentation layers are never touched. A decoder that was not pre-trained, or that belongs to an encoder
    of another depth (its stages are counted from the coarsest), is skipped and missing as a whole. What a network
    says it shares with its pre-training beside the encoder (``network.shared``, beginnings of names) must all match.

    Args:
        network: a planned U-Net with ``encoder`` and ``decoder``, not wrapped by DDP or ``torch.compile``.
        checkpoint: with the section that ``branch`` needs.
        min_coverage: least share of the encoder's parameters that must be filled, in [0, 1].

    Raises:
        WeightsIncompatibleError: other architecture or dimensions, no such section, or too little coverage.
        CheckpointCorruptError: the section holds values that are not finite.
    """
    plan, report = _checked(network, checkpoint, transfer, branch, min_coverage)
    _copy(plan.values, unique_tensors(network), checkpoint)
    return report


def can_load(
    network: nn.Module,
    checkpoint: Checkpoint,
    *,
    transfer: Literal["encoder", "encoder+decoder"] = "encoder",
    branch: Literal["teacher", "student"] = "teacher",
    min_coverage: float = 1.0,
) -> bool:
    """Whether :func:`inject` would fill this network; nothing is copied."""
    try:
        _checked(network, checkpoint, transfer, branch, min_coverage)
    except WeightsIncompatibleError:
        return False
    return True


def _checked(
    network: nn.Module, checkpoint: Checkpoint, transfer: str, branch: str, min_coverage: float
) -> tuple["_Plan", TransferReport]:
    section = _section(checkpoint, branch)
    _check_architecture(network, checkpoint, section)
    plan = _compare(network, checkpoint, section, transfer == "encoder+decoder")
    report = plan.report(checkpoint, branch, transfer)
    if report.coverage < min_coverage:
        raise _too_little(report, min_coverage)
    if lacking := [str(entry) for entry in report.missing if entry.name.startswith(_shared(network))]:
        msg = f"{report.checkpoint} does not fill {len(lacking)} tensors: {', '.join(shortened(lacking))}. "
        raise WeightsIncompatibleError(msg + "Set the method's options in the plans block as in pre-training.")
    return plan, report


def check_method(checkpoint: Checkpoint, method: str) -> None:
    """Refuse weights of another method, unless the trainer takes :data:`ANY_METHOD`.

    Raises:
        WeightsIncompatibleError
    """
    found = checkpoint.metadata["method"]
    if method not in (found, ANY_METHOD):
        msg = (
            f"{checkpoint.path} was pre-trained with {found!r}, but this trainer needs {method!r}. "
            f"Pre-train with `nnunet-invariance pretrain {method}`, or use the trainer of {found!r}."
        )
        raise WeightsIncompatibleError(msg)


@dataclass
class _Plan:
    """What would be copied, before anything is."""

    values: dict[str, Tensor] = field(default_factory=dict)
    matched: list[Entry] = field(default_factory=list)
    adapted: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)

    def report(self, checkpoint: Checkpoint, branch: str, transfer: str) -> TransferReport:
        metadata = checkpoint.metadata
        entries = (tuple(getattr(self, kind)) for kind in KINDS)
        return TransferReport(str(checkpoint.path), metadata["method"], metadata["sha256"], branch, transfer, *entries)


def _compare(network: nn.Module, checkpoint: Checkpoint, section: Mapping[str, Tensor], decoder: bool) -> _Plan:
    """Apply the rules of :func:`inject` to every tensor of the file and of the network."""
    shared = _shared(network)
    targets = {name: t for name, t in unique_tensors(network).items() if _asked_for(name, decoder, shared)}
    values = {name: t for name, t in section.items() if _asked_for(name, decoder, shared)}
    barred = _barred_decoder(checkpoint, targets, values) if decoder else None
    projection = _input_projection(network)
    plan = _Plan()
    for name, target in targets.items():
        value = values.pop(name, None)
        if value is None:
            plan.missing.append(_entry(name, None, target, "not in the file"))
        elif barred and name.startswith(DECODER):
            plan.skipped.append(_entry(name, value, None, barred))
            plan.missing.append(_entry(name, None, target, barred))
        elif resized := fitting_positions(network, checkpoint, name, value):
            plan.adapted.append(_entry(name, value, target, resized[1]))
            plan.values[name] = resized[0]
        elif value.shape == target.shape:
            plan.matched.append(_entry(name, value, target, "same name and shape"))
            plan.values[name] = value
        elif adapted := _adapt(value, target, name == projection) if name.startswith(ENCODER) else None:
            plan.adapted.append(_entry(name, value, target, adapted.rule))
            plan.values[name] = adapted.value
        else:
            plan.skipped.append(_entry(name, value, None, "other shape"))
            plan.missing.append(_entry(name, None, target, "other shape in the file"))
    plan.skipped += [_entry(name, value, None, "not in the network") for name, value in values.items()]
    return plan


def _shared(network: nn.Module) -> tuple[str, ...]:
    return tuple(getattr(network, "shared", ()))


def _asked_for(name: str, decoder: bool, shared: tuple[str, ...]) -> bool:
    wanted = decoder and name.startswith(DECODER) and not name.startswith(SEGMENTATION)
    return wanted or name.startswith((ENCODER, *shared))


def _barred_decoder(checkpoint: Checkpoint, targets: Iterable[str], values: Iterable[str]) -> str | None:
    """Why the decoder must not be taken from the file, if there is a reason."""
    if "decoder" not in checkpoint.metadata["pretrained"]:
        return "decoder was not pre-trained"
    found, wanted = (len({n.split(".")[2] for n in names if n.startswith(UPSAMPLING)}) for names in (values, targets))
    return None if found == wanted else f"decoder of {found} stages in the file, {wanted} in the network"


def _input_projection(network: nn.Module) -> str | None:
    """Name of the first convolution's kernel: nnU-Net's networks say which layer takes the image."""
    modules = [f"{path}.weight" for path in getattr(network, "keys_to_in_proj", ())]
    return next((name for name in unique_tensors(network) if name in modules), None)


class _Adapted(NamedTuple):
    value: Tensor
    rule: str


def _adapt(value: Tensor, target: Tensor, takes_image: bool) -> _Adapted | None:
    """A kernel in the target's shape by the rules of :func:`inject`; None where they do not lead there."""
    if value.ndim != target.ndim or value.ndim < 3:
        return None
    rules = []
    if takes_image and value.shape[1] != target.shape[1]:
        rules.append(f"input channels {value.shape[1]} -> {target.shape[1]}")
        value = _adapt_inputs(value, target.shape[1])
    for axis in range(2, value.ndim):
        found, wanted = value.shape[axis], target.shape[axis]
        if found != wanted and wanted == 1:
            rules.append(f"kernel axis {axis - 2}: {found} -> 1, sum over the taps")
            value = value.sum(axis, keepdim=True)
        elif found != wanted and found == 1 and wanted % 2:
            rules.append(f"kernel axis {axis - 2}: 1 -> {wanted}, in the centre")
            value = _centred(value, axis, wanted)
    return _Adapted(value, "; ".join(rules)) if value.shape == target.shape else None


def _centred(kernel: Tensor, axis: int, taps: int) -> Tensor:
    shape = list(kernel.shape)
    shape[axis] = taps
    wide = kernel.new_zeros(shape)
    wide.narrow(axis, taps // 2, 1).copy_(kernel)
    return wide


def _adapt_inputs(kernel: Tensor, channels: int) -> Tensor:
    """(O, C, *k) to (O, channels, *k): the same answer to an image whose channels are all equal."""
    share = kernel.sum(1, keepdim=True) / channels
    return share.expand(-1, channels, *kernel.shape[2:]).contiguous()


def _section(checkpoint: Checkpoint, branch: str) -> dict[str, Tensor]:
    section = checkpoint.section(SECTION_OF[branch])
    if not section:
        other = "student" if branch == "teacher" else "teacher"
        msg = f"{checkpoint.path} holds no {branch} (section {SECTION_OF[branch]!r} is empty). "
        raise WeightsIncompatibleError(msg + f'Set "branch": "{other}" in the plans block "nnunet_invariance".')
    bad = [name for name, tensor in section.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        names = ", ".join(shortened(bad))
        msg = f"{checkpoint.path} holds NaN or infinite values in {len(bad)} tensors of its {branch}: {names}. "
        raise CheckpointCorruptError(msg + "Take an earlier checkpoint or pre-train again.")
    # half precision saves space in a file; sums over channels and taps want more
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in section.items()}


def _check_architecture(network: nn.Module, checkpoint: Checkpoint, section: Mapping[str, Tensor]) -> None:
    found = checkpoint.metadata["architecture"]["network_class_name"].rsplit(".", 1)[-1]
    wanted = getattr(network, "planned_class", type(network).__name__)
    dimensions = [_dimensions(tensors) for tensors in (section, unique_tensors(network))]
    variants = [checkpoint.metadata["architecture"]["arch_kwargs"].get("variant"), getattr(network, "variant", None)]
    if found == wanted and dimensions[0] == dimensions[1] and variants[0] == variants[1]:
        return
    if variants[0] != variants[1]:
        found, wanted = (f"{name} {v!r}" if v else name for name, v in zip((found, wanted), variants, strict=True))
    msg = (
        f"{checkpoint.path} holds a {dimensions[0]}-D {found}, but the plans ask for a {dimensions[1]}-D {wanted}. "
        "Train with plans of that architecture (-p, -c), or pre-train under these plans."
    )
    raise WeightsIncompatibleError(msg)


def _dimensions(tensors: Mapping[str, Tensor]) -> int:
    """Spatial dimensions of an encoder, from the rank of its kernels."""
    return max((tensor.ndim - 2 for name, tensor in tensors.items() if name.startswith(ENCODER)), default=0)


def _copy(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Copy, then look again: two names of the network may share one tensor, and the report must not lie."""
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
        for name, value in values.items():
            if tensor_bytes(targets[name]) != tensor_bytes(value.to(targets[name].dtype)):
                msg = (
                    f"{name} of the network does not equal {checkpoint.path} after copying: the network shares its "
                    "memory with another tensor. Use a network as nnU-Net plans it."
                )
                raise WeightsIncompatibleError(msg)


def _too_little(report: TransferReport, min_coverage: float) -> WeightsIncompatibleError:
    missing = [str(e) for e in report.missing if e.name.startswith(ENCODER)]
    skipped = [str(e) for e in report.skipped if e.name.startswith(ENCODER)]
    lines = [
        f"{report.checkpoint} covers {report.coverage:.2%} of the encoder's parameters, but min_coverage is "
        f"{min_coverage:.2%}. The network was left as it was.",
        *(f"  missing: {line}" for line in shortened(missing)),
        *(f"  skipped: {line}" for line in shortened(skipped)),
        "Pre-train under these plans, train with the plans of the checkpoint (`nnunet-invariance weights inspect` and "
        '`weights plan` say which fit), or lower "min_coverage" in the plans block "nnunet_invariance".',
    ]
    return WeightsIncompatibleError("\n".join(lines))


def _entry(name: str, value: Tensor | None, target: Tensor | None, rule: str) -> Entry:
    found, wanted = (None if t is None else tuple(t.shape) for t in (value, target))
    return Entry(name, found, wanted, rule, (value if target is None else target).numel())
