"""Transfer report: which tensors and stages of a network come from a checkpoint, and which are random."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nnunet_invariance.errors import printable

ENCODER = "encoder."
DECODER = "decoder."
KINDS = ("matched", "adapted", "skipped", "missing")
SHOWN = 8
_STAGE = {
    ENCODER: re.compile(r"encoder\.stages\.(\d+)\."),
    DECODER: re.compile(r"decoder\.(?:stages|transpconvs)\.(\d+)\."),
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the report.

    Attributes:
        name: as in ``named_parameters()`` of the network, or of the file if the network lacks it.
        found: shape in the file; None if the file lacks it.
        wanted: shape in the network; None if the network lacks it.
        rule: why the tensor is in its list.
        parameters: number of elements in the network, or in the file if the network lacks it.
    """

    name: str
    found: tuple[int, ...] | None
    wanted: tuple[int, ...] | None
    rule: str
    parameters: int

    def __str__(self) -> str:
        return printable(f"{self.name} (file {_shape(self.found)}, network {_shape(self.wanted)}: {self.rule})")

    def to_dict(self) -> dict[str, Any]:
        """Built-in types only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Stage:
    """Parameters of one resolution of the encoder or decoder.

    Attributes:
        index: counts from the finest resolution, 0; None for layers outside the stages.
        parameters: number of parameters in the network.
        from_file: number of them that come from the file, adapted ones included.
    """

    index: int | None
    parameters: int
    from_file: int

    @property
    def is_complete(self) -> bool:
        """Whether all parameters come from the file."""
        return self.from_file == self.parameters

    @property
    def label(self) -> str:
        """The index in words."""
        return "outside the stages" if self.index is None else str(self.index)

    def to_dict(self) -> dict[str, int | None]:
        """Built-in types only."""
        return {"stage": self.index, "parameters": self.parameters, "from_file": self.from_file}


@dataclass(frozen=True)
class TransferReport:
    """Result of a transfer of weights.

    Attributes:
        checkpoint, method, sha256: the file, its pre-training method, and the checksum of its tensors.
        branch, transfer: which part of the file was requested.
        matched: tensors that were copied unchanged.
        adapted: tensors that were copied after a change of shape.
        skipped: tensors of the file that were not used.
        missing: tensors of the network that the file did not fill; they keep their initial values.

    >>> weight = Entry("encoder.stages.0.weight", (4, 1, 3), (4, 1, 3), "same name and shape", 12)
    >>> random = Entry("encoder.stages.1.weight", None, (8, 4, 3), "not in the file", 96)
    >>> report = TransferReport("a.safetensors", "mae", "0", "student", "encoder", (weight,), (), (), (random,))
    >>> report.coverage, round(report.parameter_coverage, 2)
    (0.5, 0.11)
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
    def encoder_stages(self) -> tuple[Stage, ...]:
        """Stages of the network's encoder, finest first."""
        return self._stages(ENCODER)

    @property
    def decoder_stages(self) -> tuple[Stage, ...]:
        """Stages of the network's decoder, finest first; empty if the transfer covers the encoder only."""
        return self._stages(DECODER)

    @property
    def coverage(self) -> float:
        """Share of the encoder's stages of which every parameter comes from the file, in [0, 1]."""
        return share_complete(self.encoder_stages)

    @property
    def coverage_of_file_stages(self) -> float:
        """:attr:`coverage` without the stages of the network that are deeper than the deepest stage of the file."""
        in_file = self.matched + self.adapted + self.skipped
        deepest = max((i for entry in in_file if (i := stage_index(entry.name, ENCODER)) is not None), default=-1)
        return share_complete(stage for stage in self.encoder_stages if stage.index is None or stage.index <= deepest)

    @property
    def parameter_coverage(self) -> float:
        """Share of the encoder's parameters that come from the file, adapted ones included, in [0, 1]."""
        filled = count(self.matched + self.adapted, ENCODER)
        total = filled + count(self.missing, ENCODER)
        return filled / total if total else 0.0

    @property
    def decoder(self) -> Literal["from the file", "partly random", "random"]:
        """Where the decoder's values come from, apart from the segmentation layers."""
        if not count(self.matched + self.adapted, DECODER):
            return "random"
        return "partly random" if count(self.missing, DECODER) else "from the file"

    def to_dict(self) -> dict[str, Any]:
        """Built-in types only, for a checkpoint or a JSON file."""
        plain = {name: getattr(self, name) for name in ("checkpoint", "method", "sha256", "branch", "transfer")}
        coverage = {name: getattr(self, name) for name in ("coverage", "parameter_coverage", "decoder")}
        stages = {
            name: [stage.to_dict() for stage in getattr(self, name)] for name in ("encoder_stages", "decoder_stages")
        }
        return {**plain, **coverage, **stages, **{k: [e.to_dict() for e in getattr(self, k)] for k in KINDS}}

    def to_text(self) -> str:
        """A table of the four lists, the tensors that were not copied unchanged, and the random stages."""
        lines = [printable(f"Transfer report: {self.branch} of {self.checkpoint} ({self.method}), {self.transfer}")]
        lines.append(f"  {'':<8} {'tensors':>8} {'parameters':>12}")
        for kind in KINDS:
            entries = getattr(self, kind)
            lines.append(f"  {kind:<8} {len(entries):>8} {count(entries):>12,}")
        for kind in KINDS[1:]:
            lines += [f"  {kind}: {line}" for line in shortened(getattr(self, kind))]
        share = f"{self.coverage:.2%} of the stages, {self.parameter_coverage:.2%} of the parameters from the file"
        lines.append(f"  encoder: {share}{_random_stages(self.encoder_stages)}")
        lines.append(f"  decoder: {self.decoder}{_random_stages(self.decoder_stages)}; segmentation layers: random")
        return "\n".join(lines)

    def _stages(self, part: str) -> tuple[Stage, ...]:
        filled: dict[int | None, int] = {}
        total: dict[int | None, int] = {}
        for entries, share in ((self.matched + self.adapted, 1), (self.missing, 0)):
            for entry in (entry for entry in entries if entry.name.startswith(part)):
                index = stage_index(entry.name, part)
                total[index] = total.get(index, 0) + entry.parameters
                filled[index] = filled.get(index, 0) + entry.parameters * share
        numbered = sorted(index for index in total if index is not None)
        deepest = numbered[-1] if numbered else 0
        # Decoder stages are numbered from the coarsest in the network, and from the finest here.
        order = [(index, index if part == ENCODER else deepest - index) for index in numbered]
        stages = [Stage(number, total[index], filled[index]) for index, number in sorted(order, key=lambda o: o[1])]
        return (*stages, *([Stage(None, total[None], filled[None])] if None in total else []))


def stage_index(name: str, part: str) -> int | None:
    """The number in the name of a tensor of the encoder or decoder; the stem belongs to stage 0 of the encoder.

    >>> stage_index("encoder.stages.3.0.convs.0.conv.weight", ENCODER)
    3
    """
    if part == ENCODER and name.startswith("encoder.stem."):
        return 0
    found = _STAGE[part].match(name)
    return int(found[1]) if found else None


def share_complete(stages: Iterable[Stage]) -> float:
    """Share of complete stages; 0 without stages."""
    complete = [stage.is_complete for stage in stages]
    return sum(complete) / len(complete) if complete else 0.0


def count(entries: Iterable[Entry], prefix: str = "") -> int:
    """Number of parameters whose name starts with ``prefix``."""
    return sum(entry.parameters for entry in entries if entry.name.startswith(prefix))


def shortened(items: Iterable[Any]) -> list[str]:
    """The first few items as lines, and how many more there are."""
    lines = [str(item) for item in items]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]


def _random_stages(stages: Iterable[Stage]) -> str:
    """Which stages are not complete, in words."""
    stages = list(stages)
    random = [stage.label for stage in stages if not stage.from_file]
    partly = [stage.label for stage in stages if stage.from_file and not stage.is_complete]
    words = [f"random stages: {', '.join(random)}"] if random else []
    words += [f"partly random stages: {', '.join(partly)}"] if partly else []
    return f" ({'; '.join(words)}; 0 is the finest)" if words else ""


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"
