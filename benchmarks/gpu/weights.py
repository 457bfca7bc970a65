"""Pre-train the default weights on a GPU that is available for a few minutes at a time.

    python -m benchmarks.gpu.weights --out DIR [--minutes 8] [--network anatomix] [--set field=value ...]

Runs ``nnunet-invariance pretrain anatomix`` and ends it in time; the next call continues from its checkpoint.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from nnunet_invariance.weights.locate import FINAL, LATEST

GRACE_SECONDS = 30  # in which a run that is asked to stop finishes its step and writes its state


def main() -> int:
    """Train until the time is over; returns the exit status of the pre-training, 0 if it was interrupted in time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pre-training; kept between the calls")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--network", default="anatomix", help="the network preset of pretrain anatomix")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="options of the pre-training")
    arguments = parser.parse_args()
    if (arguments.out / FINAL).is_file():
        print(f"{arguments.out} holds the finished weights.")
        return 0
    command = [sys.executable, "-m", "nnunet_invariance", "pretrain", "anatomix", "--network", arguments.network]
    command += ["--out", str(arguments.out), "-device", arguments.device]
    command += ["--set", *arguments.settings] if arguments.settings else []
    command += ["--c"] if (arguments.out / LATEST).is_file() else []
    process = subprocess.Popen(command)
    try:
        return process.wait(max(0.0, arguments.minutes * 60 - GRACE_SECONDS))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # the run ends after its step and saves its state
        process.wait()
        return 0 if (arguments.out / LATEST).is_file() else 1


if __name__ == "__main__":
    sys.exit(main())
