"""Which of Alice's options help? One option changed at a time, in few-shot segmentation of Hippocampus.

Data, test cases and network are those of few_shot.py: the whole hippocampus is one class.
Every arm is Alice pre-trained anew with one option changed, then AliceTrainer with plain fine-tuning (no auxiliary
loss, one learning rate, no warm-up) on the same labelled cases for the same number of iterations, beside
BaselineTrainer. Lengths and network are of a size for a CPU, far below what the defaults are meant for. All arms are
run for the first draw of labelled cases, then for the next; an arm has one pre-training for all draws, and the arm
`default-again` is the default with another seed of pre-training: what it differs by is chance. What is done is skipped:
run the same command again after an interruption. An arm that fails does not stop the others.

    python benchmarks/alice_ablation.py --data DIR --work DIR [--arms NAME ...] [--draws 3]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from common import Steps, use_tree, write_file
from few_shot import BASE_FEATURES, CONFIGURATION, ITERATIONS, PLANS, TASKS, lay_out, write_plans
from hippocampus_alice import comparison_settings, measure, unseen_cases
from tables import interval, markdown, read_rows

from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.arms import Selection
from nnunet_invariance.evaluation.effects import OVERALL, Contrast
from nnunet_invariance.evaluation.few_shot import few_shot
from nnunet_invariance.evaluation.jobs import Arm
from nnunet_invariance.evaluation.record import read_json, write_json
from nnunet_invariance.evaluation.stored import state, stored_jobs
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.pretraining.planned_dataset import open_planned_dataset
from nnunet_invariance.weights.locate import FINAL

TASK = TASKS["hippocampus"]
DATASET, SHOTS = TASK.dataset, TASK.shots[0]
EPOCHS, PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 10, 6, 50
#: The defaults, lr 1e-4 and ema_start 0.996, are meant for runs 200 times as long: the teacher would stay half random.
SHORT_RUN = ("lr=5e-4", "ema_start=0.98")
SAM_SETTINGS = ("lr=1e-3",)
FINE_TUNING = {"aux": "none", "encoder_lr_factor": 1.0, "warmup": 0.0}
BASELINE, DEFAULT = "BaselineTrainer", "default"

#: Settings of ``pretrain alice`` by arm; the first arms are run first.
ARMS = {
    DEFAULT: (),
    "default-again": ("seed=1000",),
    "pairs-sam": ("alignment=sam",),
    "pairs-same-volume": ("alignment=same-volume",),
    "pairs-random": ("alignment=random",),
    "casa-plain": ("casa=plain",),
    "target-kv-encoder": ("target_kv=encoder",),
    "encoding-sparse": ("encoding=sparse",),
    "mask-tube": ("mask_mode=tube",),
    "mim-off": ("weight_mim=0",),
    "mim-all-voxels": ("mim_voxels=all",),
    "guard-sinkhorn": ("collapse_guard=sinkhorn",),
    "guard-none": ("collapse_guard=none",),
    "inter-off": ("weight_inter=0",),
    "intra-off": ("weight_intra=0",),
    "preset-a-code": ("preset=a-code",),
    "preset-a-paper": ("preset=a-paper",),
}
RESULTS = Path(__file__).parent / "results" / "alice-ablation"


def main() -> int:
    """Run all cells that are left; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the tables")
    parser.add_argument("--arms", nargs="+", choices=[BASELINE, *ARMS], default=[BASELINE, *ARMS])
    parser.add_argument("--draws", type=int, default=3, help="draws of the labelled cases")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of fine-tuning")
    parser.add_argument("--pretraining-epochs", type=int, default=PRETRAINING_EPOCHS)
    parser.add_argument("--pretraining-iterations", type=int, default=PRETRAINING_ITERATIONS, help="steps an epoch")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work, args.task = args.work.resolve(), "hippocampus"
    use_tree(args.work)
    steps = Steps(args.work)
    try:
        lay_out(TASK, args)
        write_plans(TASK, steps, args)
        return run_arms(steps, args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args)


def run_arms(steps: Steps, args: argparse.Namespace) -> int:
    """Every arm for one more draw at a time; returns the exit status, 2 where an arm failed."""
    failed: dict[str, InvarianceError] = {}
    for draws in range(1, args.draws + 1):
        for name in args.arms:
            if name in failed:
                continue
            try:
                if name in ARMS:
                    pretrain(name, steps, args)
                    probe(name, args)
                fine_tune(name, draws, args)
            except InvarianceError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed[name] = error
            publish(args)
    return 2 if failed else 0


def plans_of(name: str) -> str:
    """The plans copy of an arm, after which its pre-training is named."""
    return f"{PLANS}_{name}"


def pretraining_of(name: str, work: Path, method: str = "alice") -> Path:
    """Where a pre-training of an arm leaves its files."""
    return work / "nnUNet_results" / DATASET / "pretraining" / f"{method}__{plans_of(name)}__{CONFIGURATION}"


def pretrain(name: str, steps: Steps, args: argparse.Namespace) -> None:
    """Pre-train an arm on the preprocessed cases, without labels; where its pairs are mined, the embedding first."""
    write_plans_copy(DATASET, PLANS, plans_of(name), CONFIGURATION, FINE_TUNING)
    runs = [("alice", (*SHORT_RUN, *ARMS[name]))]
    if "alignment=sam" in ARMS[name]:
        runs.insert(0, ("sam", SAM_SETTINGS))
    for method, settings in runs:
        command = ["nnunet-invariance", "pretrain", method, DATASET, CONFIGURATION, "-p", plans_of(name)]
        command += ["-device", args.device, "--epochs", str(args.pretraining_epochs)]
        command += ["--iterations", str(args.pretraining_iterations), "--seed", str(args.seed), "--set", *settings]
        if any(pretraining_of(name, args.work, method).glob("checkpoint_*.safetensors")):
            command.append("--c")
        steps.run(f"pretrain_{method}_{name}", command)


def probe(name: str, args: argparse.Namespace) -> None:
    """Probes of an arm on the test images, and of random networks once; kept in probes.json."""
    target = args.work / "probes.json"
    rows = read_json(target)
    if name in rows:
        return
    planned = open_planned_dataset(DATASET, CONFIGURATION, PLANS)
    cases = unseen_cases(args.work, planned)
    if "random" not in rows:
        rows["random"] = [measure(f"random {i}", planned, cases, args.seed, random_seed=i) for i in range(3)]
    checkpoint = pretraining_of(name, args.work) / FINAL
    rows[name] = [measure(kind, planned, cases, args.seed, checkpoint) for kind in ("student", "teacher")]
    write_json(target, rows)


def fine_tune(name: str, draws: int, args: argparse.Namespace) -> None:
    """Train, predict and score an arm, compared with the default and with the baseline."""
    if name == BASELINE:
        arm, references = Arm(name, f"{BASELINE}_{args.epochs}epochs"), []
    else:
        arm = Arm(name, f"AliceTrainer_{args.epochs}epochs", plans=plans_of(name))
        references = [reference for reference in (DEFAULT, BASELINE) if reference != name]
    few_shot(
        open_planned_dataset(DATASET, CONFIGURATION, PLANS),
        Selection((arm,), tuple(Contrast(name, reference, reference) for reference in references)),
        comparison_settings(args.work / "comparison", args.seed, args.device, draws),
        test=args.work / "nnUNet_raw" / DATASET,
    )


def publish(args: argparse.Namespace) -> None:
    """Tables of what is finished, and what is not run."""
    out = args.work / "comparison"
    for folder, file in (
        *((out, file) for file in ("scores.csv", "levels.csv", "effects.csv", "comparison.json")),
        *((args.work, file) for file in ("probes.json", "steps.json")),
    ):
        if (folder / file).is_file():
            write_file(args.out / file, (folder / file).read_bytes())
    for name in ARMS:
        log = pretraining_of(name, args.work) / "metrics.csv"
        if log.is_file():
            write_file(args.out / f"pretraining_{name}.csv", log.read_bytes())
    parts = [described(args)]
    if (out / "levels.csv").is_file():
        parts += ["## Segmentation", segmentation_table(out)]
    parts += ["## Pre-training", pretraining_table(args.work), "## Not run", "\n".join(not_run(args))]
    write_file(args.out / "tables.md", "\n\n".join([*parts, ""]).encode())


def described(args: argparse.Namespace) -> str:
    """The lengths, in words."""
    return (
        f"{DATASET}, seed {args.seed}, {BASE_FEATURES} base features. Pre-training: {args.pretraining_epochs} x "
        f"{args.pretraining_iterations} steps with {' '.join(SHORT_RUN)}, one for all draws of an arm. Fine-tuning: "
        f"{args.epochs} x {ITERATIONS} iterations on {SHOTS} cases. {TASK.n_test} test cases."
    )


def segmentation_table(out: Path) -> str:
    """Mean Dice over the classes with its interval, and the paired differences to the default and the baseline."""
    means, effects = (
        [row for row in read_rows(out / file) if row["metric"] == "dice" and row["label"] == OVERALL]
        for file in ("levels.csv", "effects.csv")
    )
    found = {(row["arm"], row["reference"]): row for row in effects}
    lines = []
    for row in means:
        line = [row["arm"], f"`{' '.join(ARMS.get(row['arm'], ()))}`" if ARMS.get(row["arm"]) else "-"]
        line += [interval(row, "{:.3f}"), f"{row['draws']} x {row['cases']}"]
        for reference in (DEFAULT, BASELINE):
            effect = found.get((row["arm"], reference))
            line.append(f"{interval(effect, '{:+.3f}')}, {effect['verdict']}" if effect else "-")
        lines.append(line)
    return markdown(["arm", "settings", "Dice", "draws x cases", f"minus {DEFAULT}", f"minus {BASELINE}"], lines)


def pretraining_table(work: Path) -> str:
    """Probes on unseen images and the last epoch's diagnostics."""
    probes, lines = read_json(work / "probes.json"), []
    for name in ("random", *ARMS):
        rows: list[dict[str, Any]] = probes.get(name, [])
        if not rows:
            continue
        line = [name, *(", ".join(f"{row[key]:.3g}" for row in rows) for key in ("retrieval_mm", "masked_error"))]
        log = pretraining_of(name, work) / "metrics.csv"
        epochs = read_rows(log) if log.is_file() else []
        for key in ("target_entropy", "mean_target_entropy", "effective_rank", "sure_pairs"):
            line.append(f"{float(epochs[-1][key]):.3g}" if epochs else "-")
        line.append(f"{sum(float(row['seconds']) for row in epochs):.0f}" if epochs else "-")
        lines.append(line)
    head = ["arm", "retrieval, mm", "masked error", "target entropy", "mean-target entropy", "effective rank"]
    note = (
        "Retrieval and masked error: student, teacher (random: three networks), on the test images. Entropies are "
        "shares of log K. The probe hides by zeros, which a sparse encoder has not seen in training."
    )
    return f"{note}\n\n{markdown([*head, 'sure pairs', 'seconds'], lines)}"


def not_run(args: argparse.Namespace) -> list[str]:
    """Every cell of all arms and the asked draws that has no score."""
    out = args.work / "comparison"
    jobs = stored_jobs(out) if (out / "comparison.json").is_file() else []
    found = {(job.arm.name, job.subset.draw): job for job in jobs}
    lines = []
    for draw in range(args.draws):
        for name in (BASELINE, *ARMS):
            job = found.get((name, draw))
            if job is None or not job.scores.is_file():
                lines.append(f"- draw {draw}, {name}: {state(job) if job else 'not run'}")
    return lines or ["- nothing is missing"]


if __name__ == "__main__":
    sys.exit(main())
