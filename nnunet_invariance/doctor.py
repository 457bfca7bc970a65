"""What is installed, found and set, and what is wrong, with the remedy."""

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

from packaging.requirements import Requirement

from nnunet_invariance import _discovery

PACKAGE = "nnunet_invariance"
LEAST_FREE_GB = 5
WHY = {
    "torch": "2.9 runs 3-D convolutions under AMP several times slower than its neighbours",
    "setuptools": "nnU-Net's preprocessing imports distutils, which Python 3.12 dropped",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is None where all is well."""

    section: str
    name: str
    value: str
    remedy: str | None = None


def diagnose() -> list[Finding]:
    """Every finding, in the order of the report. Imports torch and nnU-Net; changes nothing."""
    return [*installed(), *devices(), *discovery(), *folders(), *traps()]


def installed() -> Iterator[Finding]:
    """The versions of Python and of what the package requires, each against its declared range."""
    section = "Installed"
    yield Finding(section, "python", platform.python_version())
    try:
        requirements = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
        yield Finding(section, PACKAGE, metadata.version(PACKAGE))
    except metadata.PackageNotFoundError:
        yield Finding(section, PACKAGE, "not installed", "pip install -e . in the checkout")
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check_requirement(section, requirement)


def check_requirement(section: str, requirement: Requirement) -> Finding:
    """The installed version of one requirement, and the pip command where it is missing or out of range."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = None
    if version is not None and requirement.specifier.contains(version, prereleases=True):
        return Finding(section, requirement.name, version)
    found = "not installed" if version is None else f"{version}, but {requirement.specifier} is needed"
    why = f"   ({WHY[requirement.name]})" if requirement.name in WHY else ""
    return Finding(section, requirement.name, found, f"pip install '{requirement.name}{requirement.specifier}'{why}")


def devices() -> Iterator[Finding]:
    """The device kinds that torch can use."""
    section = "Found"
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(section, "torch", f"import fails: {error}", "pip install --force-reinstall torch torchvision")
        return
    yield Finding(section, "cpu", f"{_cores()} cores")
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding(section, "cuda", ", ".join(cuda) if cuda else "none (stock-sized training needs one)")
    yield Finding(section, "mps", "yes" if torch.backends.mps.is_available() else "none")


def discovery() -> Iterator[Finding]:
    """Whether the stock nnU-Net commands would find our trainers."""
    section = "Found"
    folder = _discovery.ext_trainer_folder()
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(section, "nnunetv2", f"import fails: {error}", "pip install --force-reinstall 'nnunetv2>=2.8,<3'")
        return
    yield Finding(section, "hook", "on" if _discovery.is_hooked() else "off")
    yield Finding(section, "shim folder", f"{folder} (for nnUNet_extTrainer, where the hook is off)")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net tells every file it looks into
            recursive_find_trainer_class_by_name("AliceTrainer")
    except (ImportError, OSError, RuntimeError) as error:
        remedy = (
            f"unset {_discovery.SWITCH} and TORCH_DEVICE_BACKEND_AUTOLOAD, or export nnUNet_extTrainer={folder}"
            if not _discovery.is_hooked()
            else "pip install --force-reinstall nnunet_invariance"
        )
        yield Finding(section, "AliceTrainer", f"not found by nnU-Net: {error}", remedy)
    else:
        yield Finding(section, "AliceTrainer", "found by nnU-Net")


def folders() -> Iterator[Finding]:
    """nnU-Net's three variables: set, existing, writable, and the free space behind them."""
    section = "Set"
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            yield Finding(section, name, "not set", f"export {name}=/a/folder/of/yours")
        elif not Path(value).is_dir():
            yield Finding(section, name, f"{value} does not exist", f"mkdir -p '{value}'")
        elif name != "nnUNet_raw" and not os.access(value, os.W_OK):
            yield Finding(section, name, f"{value} is not writable", f"chmod u+w '{value}', or another {name}")
        else:
            free = shutil.disk_usage(value).free / 1e9
            remedy = None
            if name != "nnUNet_raw" and free < LEAST_FREE_GB:
                remedy = f"free at least {LEAST_FREE_GB} GB there, or set {name} to another disk"
            yield Finding(section, name, f"{value} ({free:.0f} GB free)", remedy)


def traps() -> Iterator[Finding]:
    """Settings and packages that break or slow nnU-Net without saying why."""
    section = "Traps"
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        yield Finding(
            section,
            "torchvision",
            f"import fails: {error}",
            "pip install --upgrade torch torchvision, both from one index   (nnU-Net's search for its own trainers "
            "imports it on the way; ours are found without)",
        )
    else:
        yield Finding(section, "torchvision", "imports")
    workers, cores = os.environ.get("nnUNet_def_n_proc", "8"), _cores()
    shown = f"{workers}{'' if 'nnUNet_def_n_proc' in os.environ else ' (nnU-Net default)'} on {cores} cores"
    remedy = f"export nnUNet_def_n_proc={cores}   (each worker imports torch and holds a case)"
    yield Finding(section, "nnUNet_def_n_proc", shown, None if workers in map(str, range(1, cores + 1)) else remedy)
    augmenters = os.environ.get("nnUNet_n_proc_DA")
    remedy = "unset nnUNet_n_proc_DA for planning   (nnU-Net's planner crashes on 0; training is well with it)"
    yield Finding(section, "nnUNet_n_proc_DA", augmenters or "not set", remedy if augmenters == "0" else None)


def render(findings: list[Finding]) -> str:
    """The report as text: a table a section, a remedy under what is wrong, and one closing line."""
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
    closing = "All is well." if not wrong else f"{wrong} to mend, marked ! above, each with its remedy."
    return "\n".join([*lines[1:], "", closing])


def _cores() -> int:
    """The cores this process may use, which a container or scheduler may have cut."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
