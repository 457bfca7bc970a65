"""Transfer of pre-trained weights into a network, with a report about every tensor."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.registry import ANY_METHOD, trainer_for_weights
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint, tensor_bytes
from nnunet_invariance.weights.comparison import Comparison, compare, shared_prefixes
from nnunet_invariance.weights.transfer_report import ENCODER, Stage, TransferReport, shortened

Branch = Literal["teacher", "student"]
Transfer = Literal["encoder", "encoder+decoder"]
SECTION_OF: dict[Branch, str] = {"teacher": "teacher", "student": "network"}


def load_pretrained(
    network: nn.Module,
    checkpoint: Checkpoint | str | os.PathLike,
    *,
    transfer: Transfer = "encoder",
    branch: Branch | None = None,
    min_coverage: float = 1.0,
    allow_deeper_network: bool = False,
) -> TransferReport:
    """Copy pre-trained tensors into a network; if the check fails, nothing is copied.

    Rules, in this order, for each tensor of the network:

    1. Same name and shape: matched. Stages count from the finest resolution in the encoder and in the decoder, so that
       a file of four stages fills the four finest stages of a deeper network, and a deeper file fills a network of four
       stages with its four finest.
    2. Another number of input channels in the layer that takes the image, or another number of taps on an axis of a
       kernel: adapted by :func:`.adapt_kernel`. Position table of another patch: adapted by trilinear interpolation.
    3. Any other shape: skipped in the file and missing in the network. Only in the file: skipped. Only in the network:
       missing, that is, it keeps its initial values.

    Segmentation layers are never copied. A decoder that was not pre-trained is skipped and missing. Tensors beside the
    encoder that a network shares with its pre-training (``network.shared``, prefixes of names) must all be filled.

    Args:
        network: a planned U-Net with ``encoder`` and ``decoder``, not wrapped by DDP or ``torch.compile``.
        checkpoint: a file, or a loaded checkpoint that contains the section of ``branch``.
        branch: default: that of :func:`default_branch`.
        min_coverage: minimum share of the encoder's stages that the file fills completely, in [0, 1]. With 4 of 6
            stages in the file, 0.6 accepts it.
        allow_deeper_network: leave the stages that are deeper than the file out of ``min_coverage``; they are random.

    Raises:
        WeightsIncompatibleError: other architecture or dimensions, no such branch, or too little coverage.
        CheckpointCorruptError: values that are not finite, or a damaged file. WeightsNotFoundError: no such file.

    >>> load_pretrained(nn.Identity(), "no_such_file.safetensors")
    Traceback (most recent call last):
    nnunet_invariance.errors.WeightsNotFoundError: There is no checkpoint no_such_file.safetensors. ...
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint, SECTION_OF.values())
    comparison, report = _checked(network, checkpoint, transfer, branch, min_coverage, allow_deeper_network)
    _copy(comparison.values, unique_tensors(network), checkpoint)
    return report


def can_load(
    network: nn.Module,
    checkpoint: Checkpoint,
    *,
    transfer: Transfer = "encoder",
    branch: Branch | None = None,
    min_coverage: float = 1.0,
    allow_deeper_network: bool = False,
) -> bool:
    """Whether :func:`load_pretrained` accepts these arguments; nothing is copied.

    Raises:
        CheckpointCorruptError: values that are not finite.
    """
    try:
        _checked(network, checkpoint, transfer, branch, min_coverage, allow_deeper_network)
    except WeightsIncompatibleError:
        return False
    return True


def load_network(path: str | os.PathLike, branch: Branch | None = None) -> tuple[Checkpoint, Branch]:
    """Load one network of a checkpoint.

    Args:
        branch: default: that of :func:`default_branch`.

    Returns:
        the checkpoint with the tensors of this network only, and its branch.

    Raises:
        WeightsIncompatibleError: no such branch. WeightsNotFoundError: no such file. CheckpointCorruptError: damaged.
    """
    checkpoint = load_checkpoint(path, SECTION_OF.values())
    chosen = branch or default_branch(checkpoint)
    prefix = f"{SECTION_OF[chosen]}."
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefix)}
    if not tensors:
        other = "student" if chosen == "teacher" else "teacher"
        raise WeightsIncompatibleError(f"{checkpoint.path} has no {chosen}. Use its {other}: --branch {other}.")
    return replace(checkpoint, tensors=tensors), chosen


def check_method(checkpoint: Checkpoint, method: str) -> None:
    """Refuse weights of another method, unless ``method`` is :data:`~nnunet_invariance.registry.ANY_METHOD`.

    Raises:
        WeightsIncompatibleError: the weights are of another method.
    """
    found = checkpoint.metadata["method"]
    if method not in (found, ANY_METHOD):
        raise WeightsIncompatibleError(
            f"{checkpoint.path} was pre-trained with {found!r}, but this trainer needs {method!r}. "
            f"Pre-train with `nnunet-invariance pretrain {method}`, or train with {trainer_for_weights(found)}."
        )


#: Number of steps from which on the teacher of a run is loaded by default: a momentum that rises from 0.996 to 1 then
#: leaves less than e^-10 of the teacher's initial weights. Shorter runs were compared at 300 steps with one seed only.
SHORT_RUN = 5000


def default_branch(checkpoint: Checkpoint) -> Branch:
    """The student, or the teacher if there is one and the run was not shorter than :data:`SHORT_RUN` steps.

    In a short run with a momentum near 1, such as that of the presets of Alice, the teacher still contains a part of
    its initial weights.
    """
    if not checkpoint.section(SECTION_OF["teacher"]):
        return "student"
    short = 0 < checkpoint.metadata["total_steps"] < SHORT_RUN
    return "student" if short and checkpoint.section(SECTION_OF["student"]) else "teacher"


def _checked(
    network: nn.Module,
    checkpoint: Checkpoint,
    transfer: Transfer,
    branch: Branch | None,
    min_coverage: float,
    allow_deeper_network: bool,
) -> tuple[Comparison, TransferReport]:
    branch = branch or default_branch(checkpoint)
    section = _section(checkpoint, branch)
    _check_architecture(network, checkpoint, section)
    comparison = compare(network, checkpoint, section, transfer == "encoder+decoder")
    report = comparison.report(checkpoint, branch, transfer)
    if (report.coverage_of_file_stages if allow_deeper_network else report.coverage) < min_coverage:
        raise _too_little(report, min_coverage)
    shared = shared_prefixes(network)
    if lacking := [str(entry) for entry in report.missing if entry.name.startswith(shared)]:
        msg = f"{report.checkpoint} does not fill {counted(len(lacking), 'tensor')}: {', '.join(shortened(lacking))}. "
        raise WeightsIncompatibleError(msg + "Set the options of the method in the plans block as in pre-training.")
    return comparison, report


def _section(checkpoint: Checkpoint, branch: Branch) -> dict[str, Tensor]:
    section = checkpoint.section(SECTION_OF[branch])
    if not section:
        other = "student" if branch == "teacher" else "teacher"
        msg = f"{checkpoint.path} has no {branch} (section {SECTION_OF[branch]!r} is empty). "
        raise WeightsIncompatibleError(msg + f'Set "branch": "{other}" in the plans block "nnunet_invariance".')
    bad = [name for name, tensor in section.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        names = ", ".join(shortened(bad))
        where = f"{counted(len(bad), 'tensor')} of its {branch}: {names}"
        msg = f"{checkpoint.path} has NaN or infinite values in {where}. "
        raise CheckpointCorruptError(msg + "Use an earlier checkpoint or pre-train again.")
    # Files use half precision to save space; sums over channels and taps need more.
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in section.items()}


def _check_architecture(network: nn.Module, checkpoint: Checkpoint, section: Mapping[str, Tensor]) -> None:
    architecture = checkpoint.metadata["architecture"]
    variants = [architecture["arch_kwargs"].get("variant"), getattr(network, "variant", None)]
    names = [
        architecture["network_class_name"].rsplit(".", 1)[-1],
        getattr(network, "planned_class", type(network).__name__),
    ]
    dimensions = [_dimensions(tensors) for tensors in (section, unique_tensors(network))]
    if all(len(set(pair)) == 1 for pair in (variants, names, dimensions)):
        return
    if variants[0] != variants[1]:
        names = [f"{name} {variant!r}" if variant else name for name, variant in zip(names, variants, strict=True)]
    raise WeightsIncompatibleError(
        f"{checkpoint.path} contains a {dimensions[0]}-D {names[0]}, but the plans ask for a {dimensions[1]}-D "
        f"{names[1]}. Train with plans of that architecture (-p, -c), or pre-train under these plans."
    )


def _dimensions(tensors: Mapping[str, Tensor]) -> int:
    """Spatial dimensions of an encoder, from the rank of its kernels."""
    return max((tensor.ndim - 2 for name, tensor in tensors.items() if name.startswith(ENCODER)), default=0)


def _copy(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Copy, then compare: if two names of the network share memory, the report would be wrong about one of them."""
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
        for name, value in values.items():
            if tensor_bytes(targets[name]) != tensor_bytes(value.to(targets[name].dtype)):
                raise WeightsIncompatibleError(
                    f"{name} of the network does not equal {checkpoint.path} after copying: the network shares its "
                    "memory with another tensor. Use a network as nnU-Net plans it."
                )


def _too_little(report: TransferReport, min_coverage: float) -> WeightsIncompatibleError:
    missing = [str(e) for e in report.missing if e.name.startswith(ENCODER)]
    skipped = [str(e) for e in report.skipped if e.name.startswith(ENCODER)]
    stages = report.encoder_stages
    lines = [
        f"{report.checkpoint} fills {sum(s.is_complete for s in stages)} of {len(stages)} encoder stages "
        f"({report.coverage:.2%}; {report.parameter_coverage:.2%} of the parameters), but min_coverage is "
        f"{min_coverage:.2%}. The network was not changed.",
        *(f"  stage {stage.label}: {_origin(stage)}" for stage in stages if not stage.is_complete),
        *(f"  missing: {line}" for line in shortened(missing)),
        *(f"  skipped: {line}" for line in shortened(skipped)),
        "Pre-train under these plans, train with the plans of the checkpoint (`nnunet-invariance weights inspect` and "
        '`weights plan` show which fit), or lower "min_coverage" in the plans block "nnunet_invariance" to accept '
        "stages that are not pre-trained.",
    ]
    return WeightsIncompatibleError("\n".join(lines))


def _origin(stage: Stage) -> str:
    return f"{stage.from_file / stage.parameters:.2%} from the file" if stage.from_file else "random"
