"""Checks the installation and the environment, and says how to fix what is wrong."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from nnunet_invariance import _discovery
from nnunet_invariance.common.environment import check_numbers
from nnunet_invariance.common.extras import PACKAGE, extras, install_command
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import EnvironmentNotSetError, InvarianceError, WeightsNotFoundError
from nnunet_invariance.registry import ANY_METHOD, MethodEntry, TrainerEntry, methods
from nnunet_invariance.registry import trainers as known_trainers

if TYPE_CHECKING:
    from nnunet_invariance.networks.planned import PlannedModule
    from nnunet_invariance.nnunet.planned_dataset import PlannedDataset

LEAST_FREE_GB = 5
WHY = {
    "torch": "torch 2.9 runs 3-D convolutions under AMP several times slower than 2.8 and 2.10",
    "setuptools": "nnU-Net's preprocessing imports distutils, which Python 3.12 removed",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: heading under which the line is printed.
        name: what was checked.
        value: what was found.
        remedy: how to fix it; None if nothing is wrong.

    >>> print(render([Finding("Set", "nnUNet_raw", "not set", "export nnUNet_raw=/path/to/raw")]))
    Set
      ! nnUNet_raw  not set
                    -> export nnUNet_raw=/path/to/raw
    <BLANKLINE>
    1 problem found, marked with ! above; each has a remedy.
    """

    section: str
    name: str
    value: str
    remedy: str | None = None


def diagnose(plan: PlanNames | None = None) -> list[Finding]:
    """Return every finding in the order of the report. Imports torch and nnU-Net; changes nothing.

    Args:
        plan: plans that are checked too.
    """
    findings = [*installed(), *optional(), *devices(), *discovery(), *folders(), *traps()]
    return [*findings, *(planned(plan) if plan else trainers())]


@dataclass(frozen=True)
class PlanNames:
    """One configuration of a planned data set, and the device that is to train it.

    >>> PlanNames("Dataset004_Hippocampus").configuration
    '3d_fullres'
    """

    dataset: str
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    device: str = "cuda"


def planned(names: PlanNames) -> Iterator[Finding]:
    """Make the checks of ``pretrain`` and ``evaluate`` for one configuration, and go on after the first problem."""
    from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
    from nnunet_invariance.plans.preflight import check_device, check_plan

    section = f"Plans {names.plans} of {names.dataset}"
    try:
        dataset = open_planned_dataset(names.dataset, names.configuration, names.plans)
    except InvarianceError as error:
        yield Finding(section, names.configuration, *_sentences(error))
        return
    cases = len(list(dataset.folder.glob("*.pkl")))
    command = f"nnUNetv2_preprocess -d {names.dataset} -plans_name {names.plans} -c {names.configuration}"
    yield Finding(section, "preprocessed cases", str(cases), None if cases else command)
    try:
        network = check_plan(dataset)
        yield Finding(section, "options and network", type(network).__name__)
        check_device(names.device)
    except InvarianceError as error:
        yield Finding(section, "options and network", *_sentences(error))
        return
    yield from _memory(section, names, dataset, network)
    yield from _trainers_on(dataset, network)


def _memory(section: str, names: PlanNames, dataset: PlannedDataset, network: PlannedModule) -> Iterator[Finding]:
    from nnunet_invariance.plans.preflight import GB, MEMORY_REMEDY, available_memory, memory_of_plan

    needed, free = memory_of_plan(dataset, network, names.device), available_memory(names.device)
    if needed is None or free is None:
        yield Finding(section, "memory", "not known for this network or system")
        return
    found = f"about {needed / GB:.1f} GB, {names.device} has {free / GB:.1f} GB free"
    yield Finding(section, "memory", found, MEMORY_REMEDY if needed > free else None)


def trainers() -> Iterator[Finding]:
    """List what each trainer needs of the plans, and where its weights come from."""
    for name, entry in known_trainers().items():
        try:
            kind = entry.load()
        except (ImportError, OSError, RuntimeError) as error:
            yield Finding("Trainers", name, f"import fails: {error}", _reinstall_command())
            continue
        dimensions = ", ".join(f"{number}-D" for number in getattr(kind, "dimensions", ()) or (2, 3))
        least = getattr(kind, "least_channels", 1)
        channels = f", at least {counted(least, 'channel')}" if least > 1 else ""
        yield Finding(
            "Trainers", name, f"{dimensions}{channels}; {_weights_of(entry, methods().get(entry.method or ''))}"
        )


def _weights_of(trainer: TrainerEntry, method: MethodEntry | None, where: str = "") -> str:
    """Where the weights of a trainer come from.

    Args:
        where: data set, configuration and plans as on the command line; "": any.
    """
    if trainer.method == ANY_METHOD:
        return f"needs a checkpoint: nnunet-invariance weights plan {where.partition(' ')[0] or 'DATASET'} FILE"
    if method is None:
        return "needs no pre-training"
    shipped = method.has_shipped_weights and not where
    needs = "has shipped weights for some plans; for others" if shipped else "needs"
    return f"{needs} nnunet-invariance pretrain {method.name} {where or 'DATASET CONFIGURATION'}"


def _trainers_on(dataset: PlannedDataset, network: PlannedModule) -> Iterator[Finding]:
    """Say for each trainer whether it can start on these plans now, and what is left to do."""
    from nnunet_invariance.evaluation.protocols.arms import why_not
    from nnunet_invariance.plans.options import BLOCK
    from nnunet_invariance.weights.checkpoint import load_checkpoint
    from nnunet_invariance.weights.locate import find_weights
    from nnunet_invariance.weights.transfer import can_load

    def fits(path: Path) -> bool:
        return can_load(network, load_checkpoint(path), allow_deeper_network=True)

    names = (dataset.name, dataset.plans.plans_name, dataset.configuration_name)
    checkpoint = dataset.configuration.configuration.get(BLOCK, {}).get("checkpoint")
    for name, entry in known_trainers().items():
        reason = why_not(name, dataset)
        if reason or entry.method is None:
            yield Finding("Trainers", name, f"not for these plans: it {reason}" if reason else "ready")
            continue
        try:
            found = find_weights(entry.method, *names, checkpoint, fits)
            yield Finding("Trainers", name, f"ready, with {found.path} ({found.location})")
        except InvarianceError as error:  # no problem of the installation
            nothing = isinstance(error, WeightsNotFoundError) and "\n" in str(error)  # a list of the searched places
            where = f"{dataset.name} {dataset.configuration_name} -p {dataset.plans.plans_name}"
            needs = _weights_of(entry, methods().get(entry.method), where)
            yield Finding("Trainers", name, needs if nothing else str(error))


def _sentences(error: Exception) -> tuple[str, str]:
    """What an error says, and its last sentence, which is the remedy."""
    found, stop, remedy = str(error).rpartition(". ")
    return (found + stop.strip(), remedy) if found else (str(error), "see above")


def installed() -> Iterator[Finding]:
    """Compare the versions of Python and of every required package with the declared ranges."""
    section = "Installed"
    yield Finding(section, "python", platform.python_version())
    try:
        requirements = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
        yield Finding(section, PACKAGE, metadata.version(PACKAGE))
    except metadata.PackageNotFoundError:
        yield Finding(section, PACKAGE, "not installed", "run `pip install -e .` in the checkout")
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check_requirement(section, requirement)


def check_requirement(section: str, requirement: Requirement) -> Finding:
    """Return the installed version of a requirement, with a pip command if it is missing or out of range."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = None
    if version is not None and requirement.specifier.contains(version, prereleases=True):
        return Finding(section, requirement.name, version)
    found = "not installed" if version is None else f"{version}, but {requirement.specifier} is needed"
    why = f"   ({WHY[requirement.name]})" if requirement.name in WHY else ""
    return Finding(section, requirement.name, found, f"pip install '{requirement.name}{requirement.specifier}'{why}")


def optional() -> Iterator[Finding]:
    """List the extras: whether their packages are installed, and the pip command if they are not."""
    for extra, requirements in extras().items():
        findings = [check_requirement("Extras", requirement) for requirement in requirements]
        if any(finding.remedy for finding in findings):
            yield Finding("Extras", extra, f"not installed (optional): {install_command(extra)}")
        else:
            yield Finding("Extras", extra, ", ".join(f"{finding.name} {finding.value}" for finding in findings))


def devices() -> Iterator[Finding]:
    """List the devices that torch can use."""
    section = "Found"
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(section, "torch", f"import fails: {error}", "pip install --force-reinstall torch torchvision")
        return
    yield Finding(section, "cpu", counted(_cores(), "core"))
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    cuda = [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in found]
    none = "none: add -device cpu to commands that train or predict; a stock-sized network needs a GPU"
    yield Finding(section, "cuda", "; ".join(cuda) or none)
    yield Finding(section, "mps", "yes" if torch.backends.mps.is_available() else "none")


def discovery() -> Iterator[Finding]:
    """Check whether the stock nnU-Net commands find the trainers of this package."""
    section = "Found"
    folder = _discovery.ext_trainer_folder()
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(section, "nnunetv2", f"import fails: {error}", "pip install --force-reinstall 'nnunetv2>=2.8,<3'")
        return
    yield Finding(section, "hook", "on" if _discovery.is_hooked() else "off")
    yield Finding(section, "shim folder", f"{folder} (value of nnUNet_extTrainer if the hook is off)")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints every file that it searches
            recursive_find_trainer_class_by_name("AliceTrainer")
    except (ImportError, OSError, RuntimeError) as error:
        remedy = (
            f"unset {_discovery.SWITCH} and TORCH_DEVICE_BACKEND_AUTOLOAD, or export nnUNet_extTrainer={folder}"
            if not _discovery.is_hooked()
            else f"reinstall the package: {_reinstall_command()}"
        )
        yield Finding(section, "trainers", f"not found by nnU-Net: {error}", remedy)
    else:
        yield Finding(section, "trainers", "found by nnU-Net")


def folders() -> Iterator[Finding]:
    """Check that nnU-Net's three folders are set, exist, are writable, and have free space."""
    section = "Set"
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            yield Finding(section, name, "not set", f"export {name}=/path/to/{name.removeprefix('nnUNet_')}")
        elif not Path(value).is_dir():
            yield Finding(section, name, f"{value} does not exist", f"mkdir -p '{value}'")
        elif name != "nnUNet_raw" and not os.access(value, os.W_OK):
            yield Finding(
                section, name, f"{value} is not writable", f"chmod u+w '{value}', or set {name} to another folder"
            )
        else:
            free = shutil.disk_usage(value).free / 1e9
            remedy = ""
            if name != "nnUNet_raw" and free < LEAST_FREE_GB:
                remedy = f"free at least {LEAST_FREE_GB} GB there, or set {name} to another disk"
            yield Finding(section, name, f"{value} ({free:.0f} GB free)", remedy or None)


def traps() -> Iterator[Finding]:
    """Find packages and settings that break nnU-Net or slow it down without a clear message."""
    section = "Traps"
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        yield Finding(
            section,
            "torchvision",
            f"import fails: {error}",
            "pip install --upgrade torch torchvision, both from the same index   (nnU-Net imports torchvision when it "
            "searches its own trainers; the trainers of this package are found without it)",
        )
    else:
        yield Finding(section, "torchvision", "imports")
    yield from worker_settings()


def worker_settings() -> Iterator[Finding]:
    """Check nnU-Net's two variables that set the number of worker processes."""
    section = "Traps"
    workers, cores = os.environ.get("nnUNet_def_n_proc", "8"), _cores()
    default = "" if "nnUNet_def_n_proc" in os.environ else " (nnU-Net's default)"
    shown = f"{workers}{default} on {counted(cores, 'core')}"
    remedy = f"export nnUNet_def_n_proc={cores}   (each worker imports torch and holds a case in memory)"
    yield Finding(section, "nnUNet_def_n_proc", shown, None if workers in map(str, range(1, cores + 1)) else remedy)
    try:
        check_numbers()
    except EnvironmentNotSetError as error:
        yield Finding(section, "numbers of workers", *_sentences(error))
    augmenters = os.environ.get("nnUNet_n_proc_DA")
    remedy = (
        "unset nnUNet_n_proc_DA before nnUNetv2_plan_and_preprocess, which stops with 'set_num_threads expects a "
        "positive integer' if it is 0   (for training, 0 is allowed)"
    )
    yield Finding(section, "nnUNet_n_proc_DA", augmenters or "not set", remedy if augmenters == "0" else None)


def render(findings: list[Finding]) -> str:
    """Format the report: one table per section, each remedy below its finding, and a closing line."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"  {'!' if finding.remedy else ' '} {finding.name:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"    {'':<{width}}  -> {finding.remedy}")
    wrong = sum(finding.remedy is not None for finding in findings)
    problems = f"{counted(wrong, 'problem')} found, marked with ! above; each has a remedy."
    closing = problems if wrong else "No problem found."
    return "\n".join([*lines[1:], "", closing])


def _cores() -> int:
    """Number of cores that this process may use; a container or a scheduler may have limited it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reinstall_command() -> str:
    """The pip command that installs the package again from where it came."""
    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install --force-reinstall --no-deps -e '{checkout}'"
    return "pip install --force-reinstall --no-deps with the wheel or checkout that you installed it from"
