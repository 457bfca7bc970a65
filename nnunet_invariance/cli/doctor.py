"""`nnunet-invariance doctor`."""

import argparse

HELP = "what is installed, found and set, and what is wrong, with the remedy"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb to the command line."""
    subparsers.add_parser("doctor", help=HELP, description=f"Says {HELP}. Exit status 1 when something is wrong.")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when one of them needs a remedy."""
    from nnunet_invariance.doctor import diagnose, render

    findings = diagnose()
    print(render(findings))
    return int(any(finding.remedy for finding in findings))
