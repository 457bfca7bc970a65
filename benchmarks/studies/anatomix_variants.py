"""Which shapes, and how many patches of a volume, teach the most in equally many steps of ``pretrain anatomix``?

    python -m benchmarks.studies.anatomix_variants --data DIR --work DIR [--set hippocampus] [--arms formula mixed] \
        --out benchmarks/results/anatomix_variants.json

Every arm pre-trains the same CPU-sized network from the same seed for the same number of steps. Then one linear probe
measures all of them, beside networks with random weights. The same command continues an interrupted run. The arms share
one seed of the pre-training; differences below those between the random networks show nothing.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.common import Steps, cpu_sized, environment, publish, run_length, use_tree
from benchmarks.studies.few_labels.tasks import CONFIGURATION, STOCK_PLANS, TASKS, lay_out
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.probing.protocol import ProbeOptions
from nnunet_invariance.probing.report import summary, to_text
from nnunet_invariance.probing.run import run_probe
from nnunet_invariance.weights.checkpoint import read_metadata
from nnunet_invariance.weights.locate import FINAL, pretraining_folder

#: Options of `pretrain anatomix --set`; the first arm has the defaults. The templates are label maps of heads.
ARMS = {
    "procedural": (),
    "formula": ("shapes=formula",),
    "mixed": ("shapes=mixed",),
    "templates": ("templates={data}/labelmaps_head",),
    "one-cut": ("cuts=1",),
    "many-cuts": ("cuts=24",),
}
BASE_FEATURES = 8


def main() -> int:
    """Pre-train the arms that are not finished, probe all of them, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw data sets; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--set", dest="name", choices=TASKS, default="hippocampus", help="data set of the probe")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--patch", type=int, default=32, help="side of the patches of the pre-training, voxels")
    parser.add_argument("--seed", type=int, default=0, help="of the pre-trainings")
    parser.add_argument("--draws", type=int, default=3, help="draws of the labelled cases of the probe")
    parser.add_argument("--test-cases", type=int, default=20, dest="test_cases", help="of the probe")
    parser.add_argument("-device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    args = parser.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    described = environment(args.device, 1)
    try:
        files = [pretrain(arm, args) for arm in args.arms]
        options = ProbeOptions(draws=args.draws, test_cases=args.test_cases)
        where = (TASKS[args.name].dataset, CONFIGURATION, plans_of(args.arms[0]))
        result, _ = run_probe(*where, files, options=options, device=args.device, out=args.work / "probe")
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    print(to_text(result))
    runs = {arm: read_metadata(file)["progress"]["history"][-1] for arm, file in zip(args.arms, files, strict=True)}
    setting = {name: getattr(args, name) for name in ("name", "steps", "patch", "seed")}
    networks = summary(result)["networks"]
    publish("anatomix_variants", described, setting | {"end_of_pretraining": runs, "probe": networks}, args.out)
    return 0


def plans_of(arm: str) -> str:
    """Each arm has its own copy of the same plans, whose name is in the folder of its pre-training."""
    return f"variants_{arm}"


def pretrain(arm: str, args: argparse.Namespace) -> Path:
    """Pre-train one arm, unless that is done; returns the checkpoint."""
    task = TASKS[args.name]
    lay_out(task, args.data.resolve(), args.work, seed=0)
    steps = Steps(args.work / "steps" / task.dataset)
    stock = steps.plan(task.dataset, CONFIGURATION)
    changes = cpu_sized(stock, task.patch_size, BASE_FEATURES, batch_size=2)
    write_plans_copy(task.dataset, STOCK_PLANS, plans_of(arm), CONFIGURATION, {}, changes)
    folder = pretraining_folder("anatomix", task.dataset, plans_of(arm), CONFIGURATION)
    command = ["nnunet-invariance", "pretrain", "anatomix", task.dataset, CONFIGURATION, "-p", plans_of(arm)]
    command += ["-device", args.device, *run_length(folder, args.steps, 4, args.seed)]
    command += ["--set", f"patch={args.patch}", "lr=1e-3", "workers=0", "held_out=4"]
    command += [option.format(data=args.data.resolve()) for option in ARMS[arm]]
    steps.run(f"pretrain {arm}", command)
    return folder / FINAL


if __name__ == "__main__":
    sys.exit(main())
