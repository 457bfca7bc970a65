"""``nnunet-invariance doctor``: check the installation and the environment."""

import argparse

from nnunet_invariance.cli.help import ShowDefaults

HELP = "check the installation and the environment, and say how to fix what is wrong"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    description = (
        "Checks the installed packages, the devices, whether nnU-Net finds the trainers, nnU-Net's environment "
        "variables, and known traps, and says how to fix what is wrong. With a dataset, it also makes the checks that "
        "`pretrain` and `evaluate` make before they start: options, network and memory of the plans. The exit status "
        "is 1 if something is wrong."
    )
    parser = subparsers.add_parser("doctor", help=HELP, description=description, formatter_class=ShowDefaults)
    parser.add_argument("dataset", nargs="?", help="name or id of a planned dataset")
    parser.add_argument("configuration", nargs="?", default="3d_fullres", help="configuration of the plans")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="device of the training")


def run(args: argparse.Namespace) -> int:
    """Print the findings; returns 1 if one of them needs a remedy."""
    from nnunet_invariance.doctor import PlanNames, diagnose, render

    plan = PlanNames(args.dataset, args.configuration, args.plans, args.device) if args.dataset else None
    findings = diagnose(plan)
    print(render(findings))
    if any(finding.remedy for finding in findings):
        return 1
    print(f"next: {_next(args)}")
    return 0


def _next(args: argparse.Namespace) -> str:
    if args.dataset:
        return f"nnunet-invariance pretrain METHOD {args.dataset} {args.configuration} -p {args.plans}"
    return (
        "nnunet-invariance demo; with your data: nnUNetv2_plan_and_preprocess -d ID, nnunet-invariance doctor DATASET"
    )
