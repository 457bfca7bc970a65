"""``nnunet-invariance style``: what training for an unseen modality needs."""

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb, its action and their flags."""
    parser = subparsers.add_parser("style", help="prepare the training of ICMSegTrainer for an unseen modality")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    plan = actions.add_parser("plan", help="write a plans copy with z-score instead of CT normalisation")
    plan.add_argument("dataset", metavar="DATASET", help="name or id")
    plan.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    plan.add_argument("-c", dest="configuration", default="3d_fullres", help="default: 3d_fullres")
    plan.add_argument("--name", metavar="NEW", help="name of the plans copy; default: PLANS_zscore")


def run(args: argparse.Namespace) -> int:
    """Run the action; returns the exit status."""
    from nnunet_invariance.plans.copies import preprocessing_command
    from nnunet_invariance.plans.zscore import REASON, write_zscore_plans

    path = write_zscore_plans(args.dataset, args.plans, args.configuration, args.name)
    print(f"{REASON}\nplans copy: {path}")
    if command := preprocessing_command(args.dataset, path.stem, args.configuration):
        print(f"preprocess first: {command}")
    print(f"train: nnUNetv2_train {args.dataset} {args.configuration} FOLD -p {path.stem} -tr ICMSegTrainer")
    return 0
