"""The package's optional dependencies (extras), and the pip command that installs one of them."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

PACKAGE = "nnunet_invariance"


def extras() -> dict[str, list[Requirement]]:
    """The requirements of every extra except ``test``; empty if the package itself is not installed."""
    try:
        lines = metadata.requires(PACKAGE) or []
        names = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {name: [r for r in requirements if _belongs_to(r, name)] for name in sorted(names) if name != "test"}


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def install_command(extra: str) -> str:
    """The pip command that installs an extra.

    It names the required packages themselves, so it works for a checkout, for a wheel and from any folder, whether or
    not the package is on an index.

    >>> install_command("slurm").startswith("pip install ")
    True
    """
    requirements = extras().get(extra)
    if not requirements:  # an uninstalled checkout
        return f"pip install '.[{extra}]' in the checkout"
    return "pip install " + " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement in requirements)
