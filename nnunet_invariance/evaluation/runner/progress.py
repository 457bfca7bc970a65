"""One progress bar over all trainings of a comparison: epochs, predictions, scores, and the time left."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm.contrib.logging import logging_redirect_tqdm

from nnunet_invariance.common.progress import SECONDS, Progress
from nnunet_invariance.evaluation.runner.jobs import Job, epochs_done


class JobProgress:
    """Follows the jobs in nnU-Net's logs and in their folders: a job has its epochs, a prediction and its scores.

    >>> with job_progress([]) as progress:
    ...     progress.done
    {}
    """

    def __init__(self, bar: Progress, done: dict[str, int]) -> None:
        self.bar = bar
        self.done = done
        self.interval = 1 if sys.stderr.isatty() else SECONDS

    def update(self, job: Job) -> None:
        """Read the progress of a job, and redraw the bar if it is time, also if nothing was finished since."""
        now, phase = steps_done(job)
        self.bar.n += now - self.done[job.name]
        self.done[job.name] = now
        self.bar.set_postfix_str(f"{job.name}: {phase}", refresh=False)
        if time.monotonic() - self.bar.shown_at > self.interval:
            self.bar.refresh()


def steps_done(job: Job) -> tuple[int, str]:
    """Number of finished epochs, plus one with the predictions and one with the scores; and what the job does now."""
    epochs = epochs_done(job)
    if epochs < job.arm.epochs:
        return epochs, "training"
    if job.scores.is_file():
        return epochs + 2, "finished"
    if all(job.predictions(test).is_dir() for test in job.setting.tests):
        return epochs + 1, "scoring"
    return epochs, "validation and prediction"


@contextmanager
def job_progress(jobs: Sequence[Job]) -> Iterator[JobProgress]:
    """A progress bar that log messages do not break."""
    done = {job.name: steps_done(job)[0] for job in jobs}
    total = sum(job.arm.epochs + 2 for job in jobs)
    loggers = [logging.getLogger(), logging.getLogger("nnunet_invariance")]
    with Progress(total=total, initial=sum(done.values()), desc="epochs, predictions and scores", unit="step") as bar:
        with logging_redirect_tqdm(loggers):
            yield JobProgress(bar, done)
        bar.refresh()
