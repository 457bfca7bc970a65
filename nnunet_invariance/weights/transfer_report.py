"""The transfer report: what became of every tensor of a checkpoint and of a network."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

ENCODER = "encoder."
DECODER = "decoder."
KINDS = ("matched", "adapted", "skipped", "missing")
SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """One tensor of the report.

    Attributes:
        name: as in ``named_parameters()``.
        found: its shape in the file; None where the file lacks it.
        wanted: its shape in the network; None where the network lacks it.
        rule: why it stands where it stands.
        parameters: number of elements, the network's where it is in the network, else the file's.
    """

    name: str
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None
    rule: str
    parameters: int

    def __str__(self) -> str:
        return f"{self.name} (file {_shape(self.found)}, network {_shape(self.wanted)}: {self.rule})"

    def to_dict(self) -> dict[str, Any]:
        """Native types only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class TransferReport:
    """What was asked for, and what came of it.

    Attributes:
        checkpoint, method, sha256: the file, its method, and the checksum of its tensors.
        branch, transfer: what of the file was asked for.
        matched: copied as they are.
        adapted: copied after a stated change of shape.
        skipped: in the file, not used.
        missing: in the network, not filled; they keep their initial values.
    """

    checkpoint: str
    method: str
    sha256: str
    branch: str
    transfer: str
    matched: tuple[Entry, ...]
    adapted: tuple[Entry, ...]
    skipped: tuple[Entry, ...]
    missing: tuple[Entry, ...]

    @property
    def coverage(self) -> float:
        """Share of the encoder's parameters that come from the file, adapted ones counted, in [0, 1]."""
        filled = count(self.matched + self.adapted, ENCODER)
        return filled / (filled + count(self.missing, ENCODER))

    @property
    def decoder(self) -> Literal["from the file", "partly random", "random"]:
        """Where the decoder's values come from, segmentation layers aside."""
        if not count(self.matched + self.adapted, DECODER):
            return "random"
        return "partly random" if count(self.missing, DECODER) else "from the file"

    def to_dict(self) -> dict[str, Any]:
        """Native types only, for a checkpoint or a JSON file."""
        plain = {name: getattr(self, name) for name in ("checkpoint", "method", "sha256", "branch", "transfer")}
        entries = {kind: [entry.to_dict() for entry in getattr(self, kind)] for kind in KINDS}
        return {**plain, "coverage": self.coverage, "decoder": self.decoder, **entries}

    def to_text(self) -> str:
        """A short table, with the names of what was not simply copied."""
        lines = [f"Transfer report: {self.branch} of {self.checkpoint} ({self.method}), {self.transfer}"]
        lines.append(f"  {'':<8} {'tensors':>8} {'parameters':>12}")
        for kind in KINDS:
            entries = getattr(self, kind)
            lines.append(f"  {kind:<8} {len(entries):>8} {count(entries):>12,}")
        for kind in KINDS[1:]:
            lines += [f"  {kind}: {line}" for line in shortened(getattr(self, kind))]
        covered = f"  encoder: {self.coverage:.2%} from the file; decoder: {self.decoder}; "
        return "\n".join([*lines, covered + "segmentation layers: random"])


def count(entries: Iterable[Entry], prefix: str = "") -> int:
    """Number of parameters below a prefix."""
    return sum(entry.parameters for entry in entries if entry.name.startswith(prefix))


def shortened(items: Iterable[Any]) -> list[str]:
    """The first few items as lines, and how many more there are."""
    lines = [str(item) for item in items]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"
