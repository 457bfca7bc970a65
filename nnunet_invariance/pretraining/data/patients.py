"""Which volumes are of one patient, so that they are not paired with each other."""

import re
from collections.abc import Sequence

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import OptionError, TooFewVolumesError
from nnunet_invariance.nnunet.cases import Case

#: The default pattern: every volume counts as a patient of its own.
WHOLE_NAME = "(.*)"


def patients_of(cases: Sequence[Case], pattern: str) -> list[str]:
    r"""The patient of each case: the first group of ``pattern`` in its name.

    >>> cases = [Case(f"patient{i // 2}_{i}", "", (8, 8, 8), ((0, 8),) * 3) for i in range(3)]
    >>> patients_of(cases, r"(patient\d+)_.*")
    ['patient0', 'patient0', 'patient1']

    Raises:
        OptionError: the pattern is not a regular expression, has no group, or does not match a name.
    """
    if pattern == WHOLE_NAME:  # cases in different folders may have the same name
        return [f"{case.folder}/{case.name}" for case in cases]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"--patients {pattern!r} is not a regular expression ({error}). Correct it.") from error
    example = r"Example: '(patient\d+)_.*'."
    if not compiled.groups:
        raise OptionError(f"--patients {pattern!r} has no group; expected the patient in parentheses. {example}")
    found = []
    for case in cases:
        match = compiled.match(case.name)
        if match is None:
            raise OptionError(f"--patients {pattern!r} does not match the name of the case {case.name!r}. {example}")
        found.append(match[1])
    return found


def require_two_patients(patients: Sequence[str]) -> None:
    """Check that the volumes are of at least two patients.

    Raises:
        TooFewVolumesError: all volumes are of the same patient.
    """
    if len(set(patients)) < 2:
        found = f"{counted(len(patients), 'volume')} of {counted(len(set(patients)), 'patient')}"
        msg = f"{found}: pairs need at least two patients. Add volumes, or correct the pattern of --patients."
        raise TooFewVolumesError(msg)
