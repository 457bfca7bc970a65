"""Which volumes are of one patient: they are no partners of one another."""

import re
from collections.abc import Sequence

from nnunet_invariance.errors import OptionError, TooFewVolumesError
from nnunet_invariance.nnunet.cases import Case

EVERYONE = "(.*)"


def patients_of(cases: Sequence[Case], pattern: str) -> list[str]:
    """The first group of ``pattern`` in each name; with :data:`EVERYONE` each volume is a patient of its own.

    Raises:
        OptionError: the pattern is not one, has no group, or does not fit a name.
    """
    if pattern == EVERYONE:  # names may repeat in folders of further scans
        return [f"{case.folder}/{case.name}" for case in cases]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"--patients {pattern!r} is not a regular expression ({error}).") from error
    example = r"Example: '(patient\d+)_.*'."
    if not compiled.groups:
        raise OptionError(f"--patients {pattern!r} has no group; expected the patient in parentheses. {example}")
    found = [compiled.match(case.name) for case in cases]
    for case, match in zip(cases, found, strict=True):
        if match is None:
            raise OptionError(f"--patients {pattern!r} does not fit the case {case.name!r}. {example}")
    return [match[1] for match in found]


def require_two(patients: Sequence[str]) -> None:
    """Raise TooFewVolumesError where no two of these volumes are of different patients."""
    if len(set(patients)) < 2:
        msg = f"{len(patients)} volume(s) of {len(set(patients))} patient(s): pairs need two patients or more. "
        raise TooFewVolumesError(msg + "Add volumes, or mend the pattern of --patients.")
