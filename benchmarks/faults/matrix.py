"""Provoke every fault of the matrix, and record the message that the user gets.

python -m benchmarks.faults.matrix --work DIR --out benchmarks/results/faults/matrix.json
"""

import argparse
from pathlib import Path

from benchmarks.common import environment, publish
from benchmarks.faults import file_faults, run_faults, setting_faults
from benchmarks.faults.fault import FAULTS, ask
from benchmarks.faults.subjects import make_data

#: The modules that register the faults.
MODULES = (file_faults, run_faults, setting_faults)


def main() -> None:
    """Provoke all faults, or those whose name contains a word."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the data and of the faults")
    parser.add_argument("--only", metavar="WORD", default="", help="faults whose name contains this")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment("cpu", 1)
    make_data(arguments.work.absolute())
    rows = []
    for fault in FAULTS:
        if arguments.only in fault.name:
            answer = ask(fault, arguments.work.absolute() / "fault")
            problem = answer.problem(fault.expected)
            row = {"area": fault.area, "fault": fault.name, "ended": answer.ended, "message": answer.message}
            rows.append({**row, "seconds": answer.seconds, "problem": problem})
            print(f"{fault.area}: {fault.name}: {problem or 'as expected'}", flush=True)
    publish("matrix", described, {"faults": rows}, arguments.out)


if __name__ == "__main__":
    main()
