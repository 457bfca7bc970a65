"""Environment variables of nnU-Net that must be numbers; nnU-Net reads them on import, so this module comes first."""

import os

from nnunet_invariance.errors import EnvironmentNotSetError

#: Variables and their least values.
NUMBERS = {"nnUNet_def_n_proc": 1, "nnUNet_n_proc_DA": 0}


def check_numbers() -> None:
    """Check the variables with the numbers of worker processes, all at once.

    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, nnUNet_def_n_proc="many"):
    ...     check_numbers()
    Traceback (most recent call last):
    nnunet_invariance.errors.EnvironmentNotSetError: nnUNet_def_n_proc is 'many', expected a whole number of at ...

    Raises:
        EnvironmentNotSetError: names every variable with another value.
    """
    wrong = [
        f"{name} is {os.environ[name]!r}, expected a whole number of at least {least}"
        for name, least in NUMBERS.items()
        if name in os.environ and not (os.environ[name].isdecimal() and int(os.environ[name]) >= least)
    ]
    if wrong:
        raise EnvironmentNotSetError(f"{'; '.join(wrong)}. Correct them or unset them, and repeat the command.")
