"""``nnunet-invariance doctor``: check the installation and the environment."""

import argparse

HELP = "check the installation and the environment, and say how to fix what is wrong"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    description = (
        "Checks the installed packages, the devices, whether nnU-Net finds the trainers, nnU-Net's environment "
        "variables, and known traps, and says how to fix what is wrong. The exit status is 1 if something is wrong."
    )
    subparsers.add_parser("doctor", help=HELP, description=description)


def run(args: argparse.Namespace) -> int:
    """Print the findings; returns 1 if one of them needs a remedy."""
    from nnunet_invariance.doctor import diagnose, render

    findings = diagnose()
    print(render(findings))
    return int(any(finding.remedy for finding in findings))
