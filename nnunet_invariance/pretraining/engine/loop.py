"""The pre-training loop: device, mixed precision, ranks, schedule, log, checkpoints and resume, for every method."""

import logging
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.non_finite import MAX_NON_FINITE_STEPS
from nnunet_invariance.common.precision import Precision
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.common.tensorboard import CurveWriter
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import NonFiniteLossError, WeightsIncompatibleError
from nnunet_invariance.pretraining.engine.contract import (
    check_gradients,
    check_output,
    check_result,
    check_views,
    split_batch,
)
from nnunet_invariance.pretraining.engine.history import PICTURE, Row, loss_titles, write_curves, write_metrics
from nnunet_invariance.pretraining.engine.loading import load_batches, worker_error
from nnunet_invariance.pretraining.engine.method import Method, StepOutput, average
from nnunet_invariance.pretraining.engine.monitor import Monitor
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.rank_monitor import RankMonitor
from nnunet_invariance.pretraining.engine.samples import draws_in, write_samples
from nnunet_invariance.pretraining.engine.schedule import learning_rate, should_stop_early
from nnunet_invariance.pretraining.engine.state import (
    module_tensors,
    non_finite_tensors,
    optimizer_state,
    restore_module,
    restore_optimizer,
    restore_rng,
    rng_tensors,
)
from nnunet_invariance.weights.checkpoint import Checkpoint, save_checkpoint
from nnunet_invariance.weights.locate import FINAL, LATEST

logger = logging.getLogger(__name__)

#: Fraction of the steps in which problems are not reported: untrained heads often look like a collapse.
GRACE = 0.1


def make_optimizer(method: Method, options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW over all trained parameters in two groups: with and without weight decay."""
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.ndim > 1 and not name.endswith(method.no_weight_decay)}
    groups = [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": options.decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.peak_lr)


class PretrainingStopped(Exception):
    """SIGTERM or SIGINT ended the run after its current step; the state is saved."""


class Loop:
    """One pre-training run of a method.

    Args:
        metadata: what every checkpoint of the run says, see docs/architecture.md.
        monitor: a further measurement, which was started.
        curves: where the first rank also writes the values of every epoch.
    """

    def __init__(
        self,
        method: Method,
        options: LoopOptions,
        ranks: DistributedContext,
        folder: Path,
        metadata: dict[str, Any],
        monitor: Monitor | None = None,
        curves: CurveWriter | None = None,
    ) -> None:
        self.options, self.ranks, self.folder, self.metadata = options, ranks, folder, metadata
        self.monitor, self.curves = monitor, curves
        self.method = method.to(ranks.device).train()
        if options.compile:
            self.method.compile()
        self.module: torch.nn.Module = self.method
        if ranks.world_size > 1:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self.module = DistributedDataParallel(self.method, device_ids=ids, broadcast_buffers=False)
        self.trained = [p for p in self.method.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.method, options)
        self.precision = Precision.choose(options.precision, ranks.device)
        self.scaler = self.precision.make_scaler()
        self.generator = torch.Generator(ranks.device)
        self.dataset: Dataset | None = None
        self.step = 0
        self.history: list[Row] = []
        self.sums: dict[str, float] = {}  # of the current epoch
        self.problems: list[str] = []  # of the last epoch
        self.skipped = 0
        self.recent_skipped: deque[list[str]] = deque(maxlen=MAX_NON_FINITE_STEPS)
        self.stop_requested = False

    # ---- state -------------------------------------------------------------------------------------------------------

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from the state of a checkpoint.

        Raises:
            WeightsIncompatibleError: another number of ranks wrote it.
        """
        before = checkpoint.metadata["progress"]["ranks"]
        if before != self.ranks.world_size:
            raise WeightsIncompatibleError(
                f"--c: {checkpoint.path} was trained with {counted(before, 'rank')}, and this run has "
                f"{self.ranks.world_size}. The batches of a rank depend on the number of ranks. Use torchrun "
                f"--nproc-per-node {before}, or start anew without --c."
            )
        restore_module(self.method.network, checkpoint.section("network"))
        if self.method.teacher is not None:
            restore_module(self.method.teacher, checkpoint.section("teacher"))
        restore_module(self.method.heads, checkpoint.section("heads"))
        progress = checkpoint.metadata["progress"]
        restore_optimizer(self.optimizer, checkpoint.section("optimizer"), progress["optimizer"])
        if self.scaler is not None and progress["scaler"]:
            self.scaler.load_state_dict(progress["scaler"])
        self.step, self.history = checkpoint.metadata["step"], progress["history"]
        self.sums, self.skipped = progress["sums"], progress["skipped"]
        self._rng = checkpoint.section("rng")
        logger.info("continuing at step %d of %d", self.step, self.options.steps)

    def save(self, finished: bool = False) -> Path:
        """Write the state; a finished checkpoint has no optimizer and no random number generators.

        Raises:
            NonFiniteLossError: a tensor is not finite; no file is changed.
        """
        tensors = module_tensors("network", self.method.network) | module_tensors("heads", self.method.heads)
        if self.method.teacher is not None:
            tensors |= module_tensors("teacher", self.method.teacher)
        progress: dict[str, Any] = {"history": self.history, "skipped": self.skipped, "ranks": self.ranks.world_size}
        if not finished:
            of_optimizer, rest = optimizer_state(self.optimizer)
            tensors |= of_optimizer | rng_tensors()
            progress |= {"optimizer": rest, "sums": self.sums}
            progress["scaler"] = self.scaler.state_dict() if self.scaler is not None else None
        if names := non_finite_tensors(tensors):
            raise NonFiniteLossError(
                f"After step {self.step} {len(names)} of {len(tensors)} tensors are not finite, first {names[0]}; no "
                f"checkpoint was written. {self._last_good_state()}"
            )
        metadata = {**self.metadata, "step": self.step, "finished": finished, "progress": progress}
        path = self.folder / (FINAL if finished else LATEST)
        save_checkpoint(path, tensors, metadata)
        return path

    def _last_good_state(self) -> str:
        return (
            f"{self.folder / LATEST} contains the last good state if one was written. Inspect the cases named above "
            "and continue with --c, or start anew with a lower learning rate (--set lr=...)."
        )

    # ---- run ---------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the end and return the path of the finished checkpoint.

        Raises:
            NonFiniteLossError: five consecutive steps were skipped, or a weight is not finite.
            WorkerError: a data worker died, or did not answer in time.
            PretrainingStopped: after SIGTERM or SIGINT, when the current step is finished and saved.
        """
        dataset = self.method.dataset(
            self.options.steps * self.options.grad_accum_steps, self.options.seed, self.ranks.rank
        )
        check_result(self.method, "dataset", dataset, Dataset, "a map-style torch.utils.data.Dataset")
        self.dataset = dataset
        batches = load_batches(dataset, self.options, self.step, self.ranks.device.type == "cuda")
        if self.step:
            restore_rng(self._rng)
        handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        bar = Progress(
            total=self.options.steps, initial=self.step, desc=self.method.name, unit="step", shown=self.ranks.is_main
        )
        try:
            with RankMonitor(self.ranks, self.options.timeout) as monitor:
                self._run_monitored(batches, bar, monitor)
        finally:
            batches.close()
            bar.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.folder / FINAL

    def _run_monitored(self, batches: Iterator[Any], bar: Progress, monitor: RankMonitor) -> None:
        """Run all epochs and finish; name the data worker or the rank that died or stopped."""
        try:
            self._run_epochs(batches, bar)
            self._finish()
        except RuntimeError as error:
            if named := worker_error(error, self.options) or monitor.error_for(error):
                raise named from error
            raise

    def _finish(self) -> None:
        if self.ranks.is_main:
            self.save(finished=True)
            for old in self.folder.glob("checkpoint_latest*.safetensors"):
                old.unlink()
            if self.problems:
                logger.error("the run ended with %s, see above and %s", counted(len(self.problems), "problem"), PICTURE)
        self.ranks.barrier()

    def _run_epochs(self, batches: Iterator[Any], bar: Progress) -> None:
        if self.step == 0:
            self.history += [{"epoch": 0, "step": 0, **values} for values in [self._monitor(0)] if values]
            write_curves(self.curves, {"step": 0, **(self.history[0] if self.history else {})})
        started, first_step = time.perf_counter(), self.step
        while self.step < self.options.steps and not should_stop_early(self.history, self.options):
            self._train_step([next(batches) for _ in range(self.options.grad_accum_steps)], bar)
            if self.step % self.options.iterations == 0:
                self._end_epoch(time.perf_counter() - started, self.step - first_step)
                started, first_step = time.perf_counter(), self.step
            stop, _ = self.ranks.all_reduce_max(float(self.stop_requested), 0.0)
            if stop:
                if self.ranks.is_main:
                    self.save()
                msg = f"stopped at step {self.step} of {self.options.steps}; the state is saved, continue with --c"
                raise PretrainingStopped(msg)

    def _train_step(self, items: list[Any], bar: Progress) -> None:
        progress = self.step / self.options.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.options)
        self.optimizer.zero_grad(set_to_none=True)
        batches, names = zip(*(split_batch(self.method, item) for item in items), strict=True)
        keys = [key for part in names for key in part]
        outputs, total = self._accumulate(batches, progress)
        self.step += 1
        bar.update()
        check_gradients(self.method)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.options.grad_clip_norm)
        output = average(outputs)
        numbers, broken = self._read(total, norm, output)
        if broken:
            self._skip(keys, broken, overflow=self._lower_scale() and broken == "gradient")
            return
        self.optimizer.step()
        if self.scaler is not None:
            self.scaler.update()
        self.recent_skipped.clear()
        self.method.after_step(output, progress)
        self._record(numbers, output, bar)

    def _accumulate(self, batches: tuple[dict[str, Tensor], ...], progress: float) -> tuple[list[StepOutput], Tensor]:
        """Forward and backward pass of every batch, and the mean loss."""
        outputs: list[StepOutput] = []
        total = torch.zeros((), device=self.ranks.device)
        for number, batch in enumerate(batches):
            more = number + 1 < len(batches)
            module = self.module
            with module.no_sync() if more and isinstance(module, DistributedDataParallel) else nullcontext():
                output, loss = self._forward(batch, self.step * len(batches) + number, progress)
                loss = loss / len(batches)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            outputs.append(output)
            total += loss.detach()
        return outputs, total

    def _forward(self, batch: dict[str, Tensor], number: int, progress: float) -> tuple[StepOutput, Tensor]:
        """The output of the method for one batch, and its weighted loss."""
        options, device = self.options, self.ranks.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        # Every batch has its own seed, so that a continued run samples the same numbers as an uninterrupted one.
        batch_number = options.seed * options.steps * options.grad_accum_steps + number
        seed = batch_number * self.ranks.world_size + self.ranks.rank
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        views = self.method.make_views(batch, self.generator)
        check_views(self.method, views)
        with self.precision.autocast():
            output = self.module(views, progress)
            check_output(self.method, output)
            weights = self.method.loss_weights
            loss = torch.stack([weights[name] * value for name, value in output.losses.items()]).sum()
        return output, loss

    def _read(self, total: Tensor, norm: Tensor, output: StepOutput) -> tuple[dict[str, float], str]:
        """All numbers of a step by name; and what is not finite on a rank: "loss", "gradient", or "".

        This is the only place in a step where the host waits for the device.
        """
        values = {"loss": total, **output.losses, **output.diagnostics}
        # The gradient, which the ranks have averaged, is the same on all of them; the loss is not.
        broken = self.ranks.maximum(torch.stack((~total.isfinite(), ~norm.isfinite())).float())
        stacked = torch.stack([*broken, *(value.detach().float().to(total.device) for value in values.values())])
        bad_loss, bad_gradient, *numbers = stacked.tolist()
        return dict(zip(values, numbers, strict=True)), "loss" if bad_loss else "gradient" if bad_gradient else ""

    def _lower_scale(self) -> bool:
        """After a step that was skipped: lower the loss scale; False if it was not lowered, or is no longer above 1."""
        if self.scaler is None:
            return False
        before = self.scaler.get_scale()
        self.scaler.update()
        return 1 < self.scaler.get_scale() < before

    def _record(self, numbers: dict[str, float], output: StepOutput, bar: Progress) -> None:
        """Add the losses and diagnostics of a step to the sums of the epoch."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["count"] = self.sums.get("count", 0) + 1
        bar.set_postfix({n: f"{numbers[n]:.3f}" for n in ("loss", *output.losses)}, refresh=False)

    def _skip(self, keys: list[str], what: str, overflow: bool = False) -> None:
        """Count a step that changed nothing.

        Raises:
            NonFiniteLossError: it is the fifth in a row. An overflow, which the scaler answers with a smaller scale,
                does not count as one of these.
        """
        self.skipped += 1
        if overflow:
            logger.info("step %d skipped: overflow in mixed precision, the scale was lowered", self.step)
            return
        self.recent_skipped.append(keys)
        logger.warning("step %d skipped: the %s is not finite; cases: %s", self.step, what, ", ".join(keys))
        if len(self.recent_skipped) == MAX_NON_FINITE_STEPS:
            cases = sorted({key for step in self.recent_skipped for key in step})
            raise NonFiniteLossError(
                f"The {what} was not finite in {len(self.recent_skipped)} steps in a row, up to step {self.step}. "
                f"Cases in them: {', '.join(cases)}. {self._last_good_state()}"
            )

    def _end_epoch(self, seconds: float, steps: int) -> None:
        count = self.sums.pop("count", 0)
        if not count:
            return
        means = {name: total / count for name, total in self.sums.items()}
        self.sums = {}
        self.method.eval()
        with torch.no_grad(), self.precision.autocast():
            measured = self.method.evaluate()
        check_result(self.method, "evaluate", measured, dict, "a dict of numbers, which may be empty")
        means |= measured
        self.method.train()
        row: Row = {"epoch": self.step // self.options.iterations, "step": self.step, **means}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "skipped": self.skipped}
        row |= {"seconds": round(seconds, 3), "iterations_per_second": steps / seconds}
        self.history.append(row)
        problems = self.method.problems(means)
        check_result(self.method, "problems", problems, list, "a list of messages, which may be empty")
        self.problems = problems if self.step > GRACE * self.options.steps else []
        for problem in self.problems:
            logger.error("epoch %d: %s", row["epoch"], problem)
        row |= self._monitor(int(row["epoch"]))
        if self.ranks.is_main:
            parts = "  ".join(f"{n} {v:.4f}" for n, v in means.items())
            logger.info(
                "epoch %d/%d  %s  %.2f it/s", row["epoch"], self.options.epochs, parts, row["iterations_per_second"]
            )
            titles = loss_titles(self.method.loss_weights) | dict(self.method.titles)
            write_metrics(self.folder, self.history, self.problems, titles)
            write_curves(self.curves, row)
            if self.dataset is not None and draws_in(int(row["epoch"]), self.options.epochs):
                write_samples(self.method, self.dataset, self.folder, int(row["epoch"]), self.precision)
            self.save()
        self.ranks.barrier()

    def _monitor(self, epoch: int) -> Row:
        """What the monitor measures after an epoch, on the first rank; empty if it is not its turn."""
        last = self.step == self.options.steps or should_stop_early(self.history, self.options)
        if self.monitor is None or not self.ranks.is_main or not (last or epoch % self.monitor.every == 0):
            return {}
        self.method.eval()
        values = self.monitor.measure(self.method)
        self.method.train()
        logger.info("epoch %d  %s", epoch, "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return values

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        logger.warning("%s received: finishing this step, then saving", signal.Signals(number).name)
