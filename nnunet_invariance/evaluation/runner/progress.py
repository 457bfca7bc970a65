"""One progress bar over all trainings of a comparison: epochs, time left, and the cells that are validated."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nnunet_invariance.evaluation.runner.jobs import Job, epochs_done


class Progress:
    """Follows the jobs in nnU-Net's logs; redraws a terminal every second, another output every minute.

    >>> with progress([]) as bar:
    ...     bar.done
    {}
    """

    def __init__(self, bar: tqdm, done: dict[str, int]) -> None:
        self.bar = bar
        self.done = done
        self.interval = 1 if sys.stderr.isatty() else 60
        self.drawn = time.monotonic()

    def update(self, job: Job) -> None:
        """Read the progress of a job, and redraw the bar if it is time."""
        now = epochs_done(job)
        self.bar.n += now - self.done[job.name]
        self.done[job.name] = now
        after = now == job.arm.epochs and not job.scores.is_file()
        self.bar.set_postfix_str(f"{job.name}: validation, prediction" if after else "", refresh=False)
        if time.monotonic() - self.drawn > self.interval:
            self.drawn = time.monotonic()
            self.bar.refresh()


@contextmanager
def progress(jobs: Sequence[Job]) -> Iterator[Progress]:
    """A progress bar that log messages do not break."""
    done = {job.name: epochs_done(job) for job in jobs}
    total = sum(job.arm.epochs for job in jobs)
    loggers = [logging.getLogger(), logging.getLogger("nnunet_invariance")]
    with tqdm(total=total, initial=sum(done.values()), unit="epoch", desc="trainings") as bar:
        with logging_redirect_tqdm(loggers):
            yield Progress(bar, done)
        bar.refresh()
