"""Run the demo of a method: prepare the folder and the environment, do the steps, and write one page."""

import importlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

#: Module of each method's demo, with ``run(demo)`` (does the steps), ``STEPS`` (their number), ``draw(demo)`` (returns
#: the ``Page``) and ``NEXT_STEPS`` (commands for other data). The modules are
#: imported when a demo runs, so that the help of the command does not import torch.
DEMOS = {method: f"nnunet_invariance.demo.{method}" for method in ("alice", "anatomix", "icmseg", "puir")}


def run_demo(method: str, out: Path) -> Path:
    """Run the demo of a method in ``out`` and return the path of its page; an earlier demo in ``out`` is replaced.

    Raises:
        OutputError: ``out`` contains files that do not come from a demo.
        ComparisonError: a command failed; the message names its log.
    """
    from nnunet_invariance.demo.folder import empty, environment
    from nnunet_invariance.demo.next_steps import OWN_DATASET
    from nnunet_invariance.demo.page import write_page
    from nnunet_invariance.demo.steps import Demo

    module = importlib.import_module(DEMOS[method])
    out = out.resolve()
    empty(out)
    with environment(out):
        demo = Demo(out, total=module.STEPS + 1)
        module.run(demo)
        with demo.step("drawing the page"):
            page = write_page(out, module.draw(demo), demo.steps, module.NEXT_STEPS)
    minutes, seconds = divmod(round(sum(step.seconds for step in demo.steps)), 60)
    logger.info("done in %d min %d s", minutes, seconds)
    logger.info("\nThe same with your data, in nnUNet_raw/%s:\n  %s", OWN_DATASET, "\n  ".join(module.NEXT_STEPS))
    return page
