"""Checks before a long run: output folder, disk space, network and memory of the plans, and the options block.

``pretrain``, ``evaluate`` and ``doctor`` make the same checks, so that what would stop a later step stops the command
in its first second. An estimate of memory only warns.
"""

import logging
import os
import shutil
from pathlib import Path

import torch

from nnunet_invariance.errors import OptionError, OutputError
from nnunet_invariance.networks.planned import Architecture, PlannedModule
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.plans.block import check_block

__all__ = ["available_memory", "check_device", "check_output", "check_plan", "memory_of_plan", "warn_of_memory"]

logger = logging.getLogger(__name__)

GB = 1e9
#: nnU-Net's planner: this size of all feature maps of a batch takes this memory of a GPU, for 2 and 3 dimensions.
REFERENCE = {2: (85_000_000, 12), 3: (560_000_000, 2)}
REFERENCE_GB = 8.0
#: A CPU trains in float32 and a GPU in half precision.
CPU_FACTOR = 2.0
MEMORY_REMEDY = (
    "End what else uses it, or plan for less: nnUNetv2_plan_experiment -gpu_memory_target GB -overwrite_plans_name NAME"
)


def check_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        OptionError: it is not available; names those that are.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device):
        found = ", ".join(name for name, here in available.items() if here)
        raise OptionError(f"-device {device}: not available on this machine; available: {found}. Add -device cpu.")


def check_output(folder: Path, nbytes: float = 0) -> None:
    """Check that a folder exists or can be made, is writable, and has space for ``nbytes``; writes nothing.

    Raises:
        OutputError: names the folder, what was found and the remedy.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not parent.is_dir():
        msg = f"The output folder {folder} cannot be made: {parent} is a file. Move it away or choose another folder."
        raise OutputError(msg)
    if not os.access(parent, os.W_OK | os.X_OK):
        msg = f"The output folder {folder} cannot be written: {parent} is read-only or belongs to another user. "
        raise OutputError(f"{msg}Make it writable for this user or choose another folder.")
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        msg = f"{folder} needs {nbytes / GB:.1f} GB for checkpoints, but its disk has {free / GB:.1f} GB free. "
        raise OutputError(f"{msg}Free some space on that disk or choose another folder.")


def check_plan(planned: PlannedDataset) -> PlannedModule:
    """Check the options block of the plans, and build the planned network on the meta device; returns it.

    Raises:
        OptionError: an option in the block is unknown or out of range for any trainer.
        MissingPackageError: the network needs a package that is not installed.
        UnsupportedConfigurationError: the network cannot be built.
    """
    check_block(planned.configuration.configuration)
    channels = len(planned.channel_names)
    classes = planned.plans.get_label_manager(planned.dataset_json).num_segmentation_heads
    architecture = Architecture.from_plans(planned.configuration.configuration["architecture"], channels, classes)
    with torch.device("meta"):
        return architecture.build()


def parameters_of(network: PlannedModule) -> int:
    """Number of parameters.

    >>> parameters_of(torch.nn.Linear(2, 3))
    9
    """
    return sum(parameter.numel() for parameter in network.parameters())


def memory_of_plan(planned: PlannedDataset, network: PlannedModule, device: str) -> float | None:
    """The planner's own estimate of the memory of a training, in bytes; None for a network that it cannot estimate."""
    measure = getattr(network, "compute_conv_feature_map_size", None)
    if measure is None:
        return None
    size, batch = REFERENCE[len(planned.patch_size)]
    share = float(measure(planned.patch_size)) / size * planned.configuration.batch_size / batch
    return share * REFERENCE_GB * GB * (CPU_FACTOR if device == "cpu" else 1.0)


def available_memory(device: str) -> float | None:
    """Free memory of the GPU, or available memory of the machine, in bytes; None where the system does not tell."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # another system than Linux
        return None
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")), None)


def warn_of_memory(planned: PlannedDataset, network: PlannedModule, device: str) -> None:
    """Log a warning if the memory is probably too small."""
    needed, free = memory_of_plan(planned, network, device), available_memory(device)
    if needed is not None and free is not None and needed > free:
        logger.warning(
            "%s needs about %.1f GB by nnU-Net's own estimate, but %s has %.1f GB free. %s.",
            planned.configuration_name, needed / GB, device, free / GB, MEMORY_REMEDY,
        )  # fmt: skip
