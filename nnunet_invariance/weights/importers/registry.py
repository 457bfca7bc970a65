"""Registry of importers: the only list of their names. It imports neither torch nor an importer."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nnunet_invariance.weights.importers.network import ForeignNetwork

#: Name -> module of this package, or ``module:object``. The order is the order of recognition, more specific importers
#: first: files of nnssl have all keys of nnU-Net's files, and files of VoCo all keys of MONAI's.
IMPORTERS: dict[str, str] = {
    "alice": "alice",
    "nnssl": "nnssl",
    "nnunet": "nnunet",
    "anatomix": "anatomix:ANATOMIX",
    "anatomix-dev": "anatomix:ANATOMIX_DEV",
    "anatomix-dev-vit": "anatomix_vit",
    "sam": "sam",
    "puir-swin": "puir_swin",
    "voco": "voco",
    "monai-swin": "monai_swin",
    "encoder": "encoder",
}


class Importer(Protocol):
    """Interface of an importer: a module of this package, or an object in one.

    Attributes:
        DESCRIPTION: what its files are, for messages.
        KEYS: prefixes of keys that all of its files have; an unknown file is compared with them.
    """

    @property
    def DESCRIPTION(self) -> str: ...

    @property
    def KEYS(self) -> tuple[str, ...]: ...

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """Whether this importer reads a file with this content."""

    def read(
        self, path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str
    ) -> "ForeignNetwork":
        """The network in the file.

        Args:
            path: for messages only; the file was opened by :func:`~nnunet_invariance.weights.foreign.open_foreign`.
            plans: content of a plans file, for files that do not describe their network.
            configuration: of ``plans``.
        """


def get_importer(name: str) -> Importer:
    """The importer of this name, with its module imported.

    Raises:
        KeyError: :data:`IMPORTERS` has no such name.

    >>> get_importer("nnssl").DESCRIPTION
    'a checkpoint of nnssl'
    """
    module, _, attribute = IMPORTERS[name].partition(":")
    found = importlib.import_module(f"{__package__}.{module}")
    return getattr(found, attribute) if attribute else found
