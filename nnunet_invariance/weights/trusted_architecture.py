"""The only module that builds networks from the description in a file.

A checkpoint, ours or that of another tool, names the network class and its layers, and building calls them. Every
caller that builds a network from a file uses :func:`build_trusted`, :func:`architecture_of` or
:func:`trusted_architecture`, which accept names from a fixed list only.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import CheckpointCorruptError, UnsupportedConfigurationError, WeightsIncompatibleError
from nnunet_invariance.networks.architectures.anatomix_unet import DESIGNS, arch_kwargs
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK as ANATOMIX
from nnunet_invariance.networks.architectures.nnformer import NNFORMER
from nnunet_invariance.networks.architectures.primus import NETWORK as PRIMUS_NETWORK
from nnunet_invariance.networks.architectures.puir_swin import NETWORK as PUIR_SWIN_NETWORK
from nnunet_invariance.networks.architectures.resnet3d import NETWORK as RESNET_NETWORK
from nnunet_invariance.networks.architectures.swin_unetr import NETWORK as SWIN_NETWORK
from nnunet_invariance.networks.planned import Architecture, PlannedModule
from nnunet_invariance.weights.checkpoint import Checkpoint

CLASSES = {
    name: f"dynamic_network_architectures.architectures.unet.{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet")
}
SWIN, PUIR_SWIN, PRIMUS = "SwinUNETR", "PUIRSwinUNETR", "Primus"
#: Our network classes that check their own arguments.
OURS = {
    NNFORMER: f"nnunet_invariance.networks.architectures.nnformer.{NNFORMER}",
    SWIN: SWIN_NETWORK,
    PUIR_SWIN: PUIR_SWIN_NETWORK,
    PRIMUS: PRIMUS_NETWORK,
}
CLASSES |= OURS
#: Layers of ``torch.nn`` that nnU-Net's planners write into plans; their module may be part of the name.
LAYERS = {
    **{
        f"{kind}{d}d": module
        for kind, module in (
            ("Conv", "conv"),
            ("ConvTranspose", "conv"),
            ("BatchNorm", "batchnorm"),
            ("InstanceNorm", "instancenorm"),
            ("Dropout", "dropout"),
            ("AvgPool", "pooling"),
            ("MaxPool", "pooling"),
        )
        for d in (1, 2, 3)
    },
    **dict.fromkeys(("GroupNorm", "LayerNorm"), "normalization"),
    **dict.fromkeys(("ReLU", "LeakyReLU", "PReLU", "ELU", "GELU", "SiLU", "Mish", "SELU", "ReLU6"), "activation"),
    **dict.fromkeys(("Dropout", "AlphaDropout"), "dropout"),
    "Identity": "linear",
}
LAYER_NAMES = {
    path for name, module in LAYERS.items() for path in (f"torch.nn.{name}", f"torch.nn.modules.{module}.{name}")
}
MOST_STAGES, MOST_BLOCKS, LARGEST = 12, 64, 4096
MOST_VALUES, DEEPEST = 100_000, 40
#: Bytes of a network for each byte of the file that describes it, and beside that: a file may hold the encoder only.
FACTOR, REST = 16, 64 * 2**20


def build_trusted(checkpoint: Checkpoint, channels: int | None = None) -> PlannedModule:
    """Build the network of our checkpoint; its tensors must be about as large as those of the file.

    Args:
        channels: input channels; default: those of the file.

    Raises:
        WeightsIncompatibleError: our trainers cannot use the network. CheckpointCorruptError: arguments that plans
            never have, or a network that is much larger than the file.
    """
    architecture = trusted_architecture(checkpoint, channels)
    tensors = skeleton(checkpoint.path, architecture).state_dict().values()
    needed, size = sum(t.numel() * t.element_size() for t in tensors), checkpoint.path.stat().st_size
    if needed > FACTOR * size + REST:
        found = f"its network has {needed:,} bytes, and the file {size:,}"
        raise malformed(checkpoint.path, found, f"at most {FACTOR} for each byte of the file")
    return architecture.build()


def skeleton(path: Path, architecture: Architecture) -> PlannedModule:
    """The network of a file on the meta device, without memory: the file decides how large it is.

    Raises:
        CheckpointCorruptError: the network class does not take the arguments.
    """
    try:
        with torch.device("meta"):
            return architecture.build()
    except (UnsupportedConfigurationError, RuntimeError, RecursionError) as error:
        raise malformed(path, f"its network is none: {error}", "arguments that its class takes") from error


def trusted_architecture(checkpoint: Checkpoint, channels: int | None = None) -> Architecture:
    """The architecture in the metadata of our checkpoint, checked like that of a foreign file.

    Args:
        channels: input channels; default: those of the file.

    Raises:
        WeightsIncompatibleError: our trainers cannot use the network. CheckpointCorruptError: arguments that plans
            never have.
    """
    entry = checkpoint.metadata["architecture"]
    return architecture_of(checkpoint.path, entry, channels or entry["input_channels"], entry["num_classes"])


def architecture_of(path: Path, entry: Mapping[str, Any], channels: int, classes: int) -> Architecture:
    """The architecture that a foreign file describes, if our trainers can use it.

    The file decides which classes are imported and called. Therefore only nnU-Net's two U-Nets, our network classes and
    layers of ``torch.nn`` are accepted, in sizes within limits.

    Args:
        entry: ``network_class_name`` (with or without its module), ``arch_kwargs``, ``_kw_requires_import``.

    Raises:
        WeightsIncompatibleError: our trainers cannot use the network. CheckpointCorruptError: arguments that plans
            never have.
    """
    full_name = str(entry["network_class_name"])
    name = full_name.rsplit(".", 1)[-1]
    if not all(type(n) is int and 1 <= n <= LARGEST for n in (channels, classes)):
        raise malformed(path, f"its network has {channels!r} input and {classes!r} output channels", f"1 to {LARGEST}")
    if full_name in FIXED:
        return Architecture(full_name, FIXED[full_name](path, entry["arch_kwargs"]), (), channels, classes)
    if name not in CLASSES:
        msg = f"{path} contains a {name}, which our trainers cannot use: they use {', '.join(CLASSES)}. "
        raise WeightsIncompatibleError(msg + "Use it with the tool that wrote it.")
    arguments, required = plain(path, entry["arch_kwargs"]), plain(path, entry["_kw_requires_import"])
    if not (isinstance(required, list) and all(isinstance(key, str) for key in required)):
        raise malformed(path, f"the names of its classes are {required!r}", "a list of arguments")
    for key in required:
        value = arguments.get(key)
        if value is not None and not (isinstance(value, str) and value in LAYER_NAMES):
            expected = f"a layer of torch.nn: one of {', '.join(LAYERS)}"
            raise malformed(path, f"argument {key!r} of its network is {value!r}", expected)
    _check_sizes(path, name, arguments)
    return Architecture(CLASSES[name], arguments, tuple(required), channels, classes)


def _check_sizes(path: Path, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse numbers that plans never have, before a network is built from them."""
    stages = arguments.get("n_stages")
    if not isinstance(stages, int) or not 2 <= stages <= MOST_STAGES:
        raise malformed(path, f"its network has {stages!r} stages", f"2 to {MOST_STAGES}")
    keys = ("strides",) if name in OURS else ("strides", "kernel_sizes")
    if not all(stride >= 1 for key in keys for stride in _numbers(arguments.get(key, [0]))):
        raise malformed(path, "its strides or kernels are not lists of whole numbers", "at least 1 on each axis")
    blocks = max(
        _numbers([value for key, value in arguments.items() if key.startswith(("n_conv_", "n_blocks_"))]), default=0
    )
    if not blocks <= MOST_BLOCKS:  # a convolution takes memory even on the meta device
        raise malformed(path, f"a stage of its network has {blocks} convolutions or blocks", f"at most {MOST_BLOCKS}")
    largest = max(_numbers(arguments))
    if not largest <= LARGEST:
        raise malformed(path, f"its network has an argument of {largest}", f"at most {LARGEST}")


def _anatomix_arguments(path: Path, given: Any) -> dict[str, Any]:
    """Arguments of an anatomix U-Net: names from fixed lists."""
    arguments = plain(path, given)
    variant, rule = arguments.get("variant"), arguments.get("channels")
    if variant not in DESIGNS or rule not in ("averaged", "separate"):
        found = f"its network is an anatomix U-Net {variant!r} with channels {rule!r}"
        raise malformed(path, found, f"one of {', '.join(DESIGNS)}, channels 'averaged' or 'separate'")
    return arch_kwargs(variant, rule)


def _no_arguments(path: Path, given: Any) -> dict[str, Any]:
    """SAM's ResNet takes no arguments."""
    if given != {}:
        raise malformed(path, f"its network has the arguments {plain(path, given)}", "none")
    return {}


#: Our network classes whose arguments a file chooses from fixed lists, and the check of these arguments.
FIXED = {ANATOMIX: _anatomix_arguments, RESNET_NETWORK: _no_arguments}


def plain(path: Path, value: Any) -> Any:
    """A copy with the types of JSON; NumPy numbers and arrays become built-in types.

    Raises:
        CheckpointCorruptError: another type, or more values than plans ever have.

    >>> plain(Path("a.pth"), {"spacing": (1.0, 2.0)})
    {'spacing': [1.0, 2.0]}
    """
    budget = [MOST_VALUES]

    def copy(item: Any, depth: int) -> Any:
        budget[0] -= 1
        if budget[0] < 0 or depth > DEEPEST:
            raise malformed(
                path, "its plans have too many values or too many levels", f"at most {MOST_VALUES:,} values"
            )
        if item is None or type(item) in (bool, int, float, str):
            return item
        if isinstance(item, Mapping):
            return {str(key): copy(entry, depth + 1) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [copy(entry, depth + 1) for entry in item]
        if hasattr(item, "tolist") and not isinstance(item, Tensor):
            return copy(item.tolist(), depth + 1)
        raise malformed(path, f"its plans contain a {type(item).__name__}", "numbers, text, lists and dictionaries")

    return copy(value, 0)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def malformed(path: Path, found: str, expected: str) -> CheckpointCorruptError:
    """The error for a description of a network that plans never have."""
    msg = f"{path} cannot be used: {found}; expected {expected}. "
    return CheckpointCorruptError(msg + "Use the file as its authors released it.")
