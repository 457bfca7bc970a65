"""Run the study; finished steps are skipped, so that the same command continues an interrupted run.

    python -m benchmarks.studies.few_labels --data DIR --work DIR --sets hippocampus acdc --arms plain dense-summed
        --shots 1 --draws 2 --pretraining-seeds 0 1

One call trains every named arm on every set, at one number of labelled cases. Each set and number of cases has its own
comparison folder, so that later calls add arms and draws; another number of iterations needs another --work. Tables are
written after every call.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.common import Steps, use_tree
from benchmarks.studies.few_labels.arms import RECIPES, pretrain, write_arm
from benchmarks.studies.few_labels.tables import CONTROLS, publish
from benchmarks.studies.few_labels.tasks import CONFIGURATION, PLANS, TASKS, Task, lay_out, plan
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw data sets; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes (about 3 GB)")
    parser.add_argument("--sets", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--shots", type=int, default=1, help="number of labelled cases")
    parser.add_argument("--draws", type=int, default=1, help="draws of the labelled cases")
    parser.add_argument("--pretraining-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--training-seeds", nargs="+", type=int, default=[0], help="0: that of --seed")
    parser.add_argument("--iterations", type=int, default=500, help="training iterations")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    args = parser.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    try:
        for name in args.sets:
            run(TASKS[name], args)
            publish(args.work, args.iterations)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(task: Task, args: argparse.Namespace) -> None:
    """Plan, pre-train and compare the arms on one data set."""
    steps = Steps(args.work / "steps" / task.dataset)
    lay_out(task, args.data.resolve(), args.work, args.seed)
    plan(task, args.work, steps, args.iterations, args.seed)
    arms = []
    for name in args.arms:
        method = RECIPES[name].method
        for seed in args.pretraining_seeds if method else [0]:
            if method:
                pretrain(task, args.work, steps, method, seed)
            arms += [write_arm(task, args.work, name, seed, training) for training in args.training_seeds]
    options = ProtocolOptions(
        shots=[args.shots],
        draws=args.draws,
        n_val=1,
        seed=args.seed,
        device="cpu",
        mirroring=False,
        tolerance=1.0,
        out=args.work / "comparison" / f"{task.dataset}_{args.shots}",
    )
    planned = open_planned_dataset(task.dataset, CONFIGURATION, PLANS)
    controls = [arm.name for arm in arms if arm.name in CONTROLS]
    contrasts = tuple(Contrast(arm.name, c, c) for c in controls for arm in arms if arm.name != c)
    run_few_shot(planned, Selection(tuple(arms), contrasts), options, test=args.work / "nnUNet_raw" / task.dataset)


if __name__ == "__main__":
    sys.exit(main())
