"""``nnunet-invariance evaluate``: compare trainers on few labelled cases."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb, its protocols and their flags."""
    parser = subparsers.add_parser("evaluate", help="compare trainers under one protocol")
    protocols = parser.add_subparsers(dest="protocol", required=True)
    few_shot = protocols.add_parser(
        "few-shot",
        help="train on k labelled cases, test on the same held-out cases",
        description="Draws k labelled cases by seed, trains every trainer on them with nnUNetv2_train, predicts the "
        "test cases with nnUNetv2_predict, and writes scores.csv, summary.csv and comparison.json. The same command "
        "continues a run that was stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = few_shot.add_argument
    add("dataset", help="name or id of the dataset")
    add("configuration", help="configuration of the plans, for example 3d_fullres")
    add("--trainers", nargs="+", required=True, metavar="NAME", help="trainers, as for nnUNetv2_train -tr")
    add("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans identifier")
    add("--shots", nargs="+", type=int, default=[5], metavar="K", help="numbers of labelled training cases")
    add("--draws", type=int, default=1, metavar="N", help="independent draws of the training cases")
    test = few_shot.add_mutually_exclusive_group()
    test.add_argument("--n-test", type=int, default=20, metavar="N", help="draw N test cases no pre-training has seen")
    test.add_argument("--test-cases", nargs="+", metavar="ID", help="the test cases by name")
    add("--n-val", type=int, default=2, metavar="N", help="validation cases beside the K training cases")
    add("--seed", type=int, default=0, help="of the draws")
    add("--baseline", metavar="NAME", help="trainer that differences refer to; the last one when not given")
    add("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="where to train and predict")
    add("--disable_tta", action="store_true", help="predict without mirroring")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: nnUNet_results/DATASET/evaluation/few-shot__PLANS__CONFIGURATION",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit status."""
    from nnunet_invariance.evaluation.few_shot import few_shot
    from nnunet_invariance.evaluation.jobs import Arm

    out = few_shot(
        args.dataset,
        args.configuration,
        args.plans,
        [Arm(trainer, trainer) for trainer in args.trainers],
        shots=args.shots,
        draws=args.draws,
        test_cases=args.test_cases,
        n_test=args.n_test,
        n_val=args.n_val,
        seed=args.seed,
        device=args.device,
        mirroring=not args.disable_tta,
        baseline=args.baseline,
        out=args.out,
    )
    print(f"finished: {out}")
    return 0
