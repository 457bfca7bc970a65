"""Alice (arXiv 2302.05615): self-distillation, CASA and masked reconstruction, for any encoder that returns skips."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.device_views import apply_intensity, augment_affine, sample_intensity
from nnunet_invariance.augmentation.masking import sample_block_mask, sample_tube_mask, upsample_cells, valid_cells
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.losses.self_distillation import SelfDistillationLoss
from nnunet_invariance.networks.heads.casa import CrossAttentionAlignment
from nnunet_invariance.networks.heads.distillation_head import DistillationHead
from nnunet_invariance.networks.planned import cumulative_strides, decode, to_tokens
from nnunet_invariance.networks.sparse import MaskTokens, SparseEncoding
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.data.alignment import Alignment, BodyCoordinates, RandomPoints, SameVolume
from nnunet_invariance.pretraining.data.crops import PairedCrops
from nnunet_invariance.pretraining.data.mining import MiningOptions, load_or_mine_pairs, require_embedding
from nnunet_invariance.pretraining.data.patients import patients_of, require_two_patients
from nnunet_invariance.pretraining.engine.method import (
    Method,
    Setup,
    StepOutput,
    Views,
    cosine_momentum,
    frozen_copy,
    update_ema,
)
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel, restoration
from nnunet_invariance.pretraining.methods.alice_collapse import collapse_warnings
from nnunet_invariance.pretraining.methods.alice_options import TITLES, AliceOptions
from nnunet_invariance.weights.locate import FINAL

#: All alignments but "sam", which reads pairs that were mined with an anatomical embedding.
ALIGNMENTS: dict[str, Callable[[str], Alignment]] = {
    "coordinates": BodyCoordinates,
    "same-volume": SameVolume,
    "random": RandomPoints,
}


def relative_entropy(p: Tensor) -> Tensor:
    """Entropy of distributions (..., K) as a fraction of log K, the entropy of the uniform distribution: (...).

    >>> relative_entropy(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    tensor([1.0000, 0.8113])
    """
    return -torch.xlogy(p, p).sum(-1) / math.log(p.shape[-1])


def _has_instance_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.instancenorm._InstanceNorm) for part in module.modules())


class _Features(NamedTuple):
    """What student or teacher compute: tokens (B, N, C), and the features of the class token (B, C)."""

    encoder: Tensor
    decoder: Tensor
    pooled: Tensor


class _Heads(nn.Module):
    """Projection head, CASA (if any) and mask tokens, for the student and the teacher."""

    def __init__(self, encoder_channels: int, decoder_channels: int, hidden: int, options: AliceOptions) -> None:
        super().__init__()
        k, temperature = options.num_prototypes, options.student_temperature
        head = DistillationHead(encoder_channels, decoder_channels, hidden, num_prototypes=k)
        self.student = nn.ModuleDict({"head": head})
        if options.casa != "none":
            self.student["casa"] = CrossAttentionAlignment(k, hidden=4 * k, form=options.casa)
        self.teacher = frozen_copy(self.student)
        self.inter = SelfDistillationLoss(k, temperature, collapse_guard=options.collapse_guard)
        self.intra = SelfDistillationLoss(k, temperature, collapse_guard=options.collapse_guard)


def _embedding_folder(folder: Path) -> Path:
    """The folder of the anatomical embedding beside that of a run."""
    return folder.with_name(folder.name.replace(Alice.name, "sam", 1))


class Alice(Method):
    """The student sees masked crops, and its moving average, the teacher, sees the same crops without a mask.

    A pair consists of crops of two volumes that show the same body part.

    * inter-volume loss: the student's class token of one volume predicts the teacher's class token of the other;
    * intra-volume loss: the student's token in a hidden cell predicts the teacher's token in the same cell, with tokens
      of the encoder or of the decoder. With CASA, the tokens of both at the positions of the student's encoder tokens
      agree;
    * masked reconstruction: the student's decoder restores the hidden voxels.

    A loss whose weight is 0 is not computed, except for the reconstruction.

    The tokens are those of the encoder stage whose stride is nearest 16 (:func:`token_stage`) and of the decoder stage
    one level finer. A mask cell has the size of a token. No loss uses padded voxels. With a sparse encoding the student
    has no tokens in hidden cells, so class token, queries and intra-volume loss use the visible cells only.

    Args:
        setup: planned network and data.
        options: of the method.
        alignment: decides where the partner of a crop is centred; default: that of the options.

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> Alice(setup, AliceOptions(head_width=8, num_prototypes=8)).loss_weights
    {'inter': 0.0, 'intra': 1.0, 'mim': 10.0}
    """

    name = "alice"
    citation = (
        "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D "
        "Medical Image Analysis, ICCV 2023, arXiv 2302.05615"
    )
    options_class = AliceOptions
    options: AliceOptions
    least_volumes = 2
    titles = TITLES

    def __init__(self, setup: Setup, options: AliceOptions, alignment: Alignment | None = None) -> None:
        super().__init__(setup, options)
        patients = patients_of(setup.cases, options.patients)
        if patients and options.alignment != "same-volume":
            require_two_patients(patients)
        if alignment is None and options.alignment != "sam":
            alignment = ALIGNMENTS[options.alignment](options.patients)
        self.alignment = alignment  # prepare() reads mined pairs
        self.batch_size = options.batch_size or max(1, setup.batch_size // 2)
        self.teacher = frozen_copy(self.network)
        encoder = self.network.encoder
        self.decoder_cell = cumulative_strides(encoder.strides)[self.stage - 1]
        self.decoder_stage = len(encoder.strides) - 1 - self.stage
        channels = encoder.output_channels
        hidden = options.head_width or min(2048, 8 * channels[self.stage])
        self.heads = _Heads(channels[self.stage], channels[self.stage - 1], hidden, options)
        self.sparse: SparseEncoding | None = None
        if options.encoding == "sparse":
            self.sparse = SparseEncoding(encoder)
            self.heads.mask_tokens = MaskTokens(channels)
        self.reconstruction_loss = MaskedReconstructionLoss()
        automatic = {"inter": 0.0 if _has_instance_norm(encoder) else 1.0, "mim": 10.0 if setup.unit_range else 1.0}
        given = {name: getattr(options, f"weight_{name}") for name in ("inter", "intra", "mim")}
        self.loss_weights = {name: automatic[name] if w is None else w for name, w in given.items()}
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Exclude the parts of the heads that no loss uses from the training."""
        head, plain = self.heads.student["head"], self.options.casa == "none"
        inter = bool(self.loss_weights["inter"])
        head.class_prototypes.requires_grad_(inter)
        head.encoder_map.requires_grad_(inter or not plain or self.options.target_tokens == "encoder")
        head.decoder_map.requires_grad_(not plain or self.options.target_tokens == "decoder")

    def describe(self) -> str:
        """See :class:`Method`; the line also names the options that differ from their defaults."""
        options = ((f.name, f.default, getattr(self.options, f.name)) for f in dataclasses.fields(self.options))
        changed = " ".join(f"{name}={value}" for name, default, value in options if value != default)
        return f"{super().describe()}, {changed or 'default options'}"

    def train(self, mode: bool = True) -> "Alice":
        """The teacher's head and CASA stay in evaluation mode, so that the target has no dropout."""
        super().train(mode)
        self.heads.teacher.eval()
        return self

    @classmethod
    def check_files(cls, options: MethodOptions, folder: Path, resume: bool) -> None:
        """With ``alignment="sam"``, the embedding must be finished."""
        if isinstance(options, AliceOptions) and options.alignment == "sam":
            require_embedding(_embedding_folder(folder) / FINAL)

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """With ``alignment="sam"``, read the mined pairs; the first rank mines them if they do not exist."""
        if self.options.alignment != "sam" or self.alignment is not None:
            return
        embedding = _embedding_folder(folder)
        options = MiningOptions(patients=self.options.patients)
        arguments = (embedding, embedding / FINAL, manifest, options, group.device.type)
        if group.is_main:
            pairs = load_or_mine_pairs(*arguments)
        group.barrier()
        if not group.is_main:
            pairs = load_or_mine_pairs(*arguments)
        self.alignment = pairs
        self.prepared = {"pairs_sha256": pairs.sha256}

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`.

        Raises:
            OptionError: the options ask for mined pairs, but :meth:`prepare` was not called.
        """
        if self.alignment is None:
            msg = "alignment=sam: no mined pairs were read. Call prepare() first, or construct Alice with alignment=..."
            raise OptionError(msg)
        return PairedCrops(self.setup.cases, self.setup.patch_size, self.alignment, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """One affine map per crop, independent intensity changes for student and teacher, and the student's mask."""
        image, valid = augment_affine(batch["image"], batch["valid"], self.setup.spacing, generator)
        cells = valid_cells(valid, self.cell)
        hidden_cells = self._mask(cells, generator)
        hidden = upsample_cells(hidden_cells, self.cell)
        student, teacher = (apply_intensity(image, sample_intensity(image.shape, generator)) * valid for _ in range(2))
        return {
            "student": student * ~hidden,
            "teacher": teacher,
            "image": image,
            "hidden": hidden & valid,
            "valid_mask": valid,
            "visible_cells": cells & ~hidden_cells,
            "confident": (batch["score"] >= self.options.score_threshold).repeat(2),
            "hidden_cells": hidden_cells,
            "encoder_valid": cells.flatten(1),
            "decoder_valid": valid_cells(valid, self.decoder_cell).flatten(1),
        }

    def _mask(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        if self.options.mask_mode == "block3d":
            return sample_block_mask(cells, self.options.mask_ratio, generator)
        # z, which is the last axis of NNFormerUNet's encoder; the first axis of other encoders, which name no axes
        axis = getattr(self.network.encoder, "axes", (0,))[-1]
        return sample_tube_mask(cells, self.options.mask_ratio, generator, axis)

    def _student_skips(self, views: dict[str, Tensor]) -> list[Tensor]:
        if self.sparse is None:
            return self.network.encoder(views["student"])
        with self.sparse.restricted_to(views["visible_cells"]):
            skips = self.network.encoder(views["student"])
        return self.heads.mask_tokens(skips, views["visible_cells"])

    @staticmethod
    def _pool(tokens: Tensor, valid: Tensor) -> Tensor:
        weight = valid.to(tokens.dtype).unsqueeze(-1)
        return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the docstring of the class, and :class:`Method`."""
        temperature = self._teacher_temperature(progress)
        student, reconstruction = self._student(views)
        with torch.no_grad():
            teacher = self._teacher(views)
        restored = views["hidden"] if self.options.mim_voxels == "masked" else views["valid_mask"]
        output = StepOutput({"mim": self.reconstruction_loss(reconstruction, views["image"], restored)})
        self._add_intra(output, student, teacher, views, temperature)
        if self.loss_weights["inter"]:
            self._add_inter(output, student, teacher, views, temperature)
        return output

    def _student(self, views: Views) -> tuple[_Features, Tensor]:
        skips = self._student_skips(views)
        features = decode(self.network.decoder, skips)
        pooled = views["encoder_valid"] if self.sparse is None else views["visible_cells"].flatten(1)
        tokens = to_tokens(skips[self.stage])
        found = _Features(tokens, to_tokens(features[self.decoder_stage]), self._pool(tokens, pooled))
        return found, self.network.decoder.seg_layers[-1](features[-1])

    def _teacher(self, views: Views) -> _Features:
        skips = self.teacher.encoder(views["teacher"])
        tokens = decoded = to_tokens(skips[self.stage])
        if self.options.target_tokens == "decoder":
            decoded = to_tokens(decode(self.teacher.decoder, skips)[self.decoder_stage])
        return _Features(tokens, decoded, self._pool(tokens, views["encoder_valid"]))

    def _add_intra(
        self, output: StepOutput, student: _Features, teacher: _Features, views: Views, temperature: float
    ) -> None:
        """Add the token loss, the mean of its targets for the center, and the measures of collapse."""
        hidden_only = self.options.casa == "none"
        s, t, counted = (self._hidden_tokens if hidden_only else self._aligned)(student, teacher, views)
        output.losses["intra"] = self.heads.intra(s, t, temperature, counted)
        valid = views[f"{self.options.target_tokens}_valid"] if hidden_only else counted  # a small body has none hidden
        # Means over samples of means within a sample: their mean over ranks is that of the joined batch.
        output.state["token_mean"] = self._pool(t, valid).mean(0)
        output.diagnostics.update(self._diagnostics(t, valid, temperature))

    def _hidden_tokens(self, student: _Features, teacher: _Features, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of student and teacher in the same cells (B, N, K), and which cells are hidden and valid (B, N)."""
        kind, hidden, valid = self.options.target_tokens, views["hidden_cells"], views["encoder_valid"]
        if kind == "decoder":
            factor = [a // b for a, b in zip(self.cell, self.decoder_cell, strict=True)]
            hidden, valid = upsample_cells(hidden, factor), views["decoder_valid"]
        s, t = (
            getattr(side["head"], f"{kind}_tokens")(getattr(features, kind))
            for side, features in ((self.heads.student, student), (self.heads.teacher, teacher))
        )
        return s, t.detach(), hidden.flatten(1) & valid

    def _aligned(self, student: _Features, teacher: _Features, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens that CASA computes at the positions of the student's encoder tokens (B, N, K), and which count."""
        head, casa = self.heads.student["head"], self.heads.student["casa"]
        query = head.encoder_tokens(student.encoder)
        s = casa(query, head.decoder_tokens(student.decoder), views["decoder_valid"])
        with torch.no_grad():
            kind, side = self.options.target_tokens, self.heads.teacher
            keys = getattr(side["head"], f"{kind}_tokens")(getattr(teacher, kind))
            t = side["casa"](query.detach(), keys, views[f"{kind}_valid"])
        return s, t, views["encoder_valid"] if self.sparse is None else views["visible_cells"].flatten(1)

    def _add_inter(
        self, output: StepOutput, student: _Features, teacher: _Features, views: Views, temperature: float
    ) -> None:
        """Add the class-token loss, the mean of its targets for the center, and its diagnostics."""
        predicted = self.heads.student["head"].class_token(student.pooled)
        target = self.heads.teacher["head"].class_token(teacher.pooled).detach()
        partner = target.roll(len(target) // 2, 0)
        output.losses["inter"] = self.heads.inter(predicted, partner, temperature, views["confident"])
        output.state["class_mean"] = target.mean(0)
        output.diagnostics["class_target_entropy"] = relative_entropy(
            self.heads.inter.target(target, temperature)
        ).mean()
        output.diagnostics["confident_pairs"] = views["confident"].float().mean()

    def _teacher_temperature(self, progress: float) -> float:
        start, end = self.options.teacher_temperature_start, self.options.teacher_temperature
        return start + (end - start) * min(1, progress / 0.03)

    @torch.no_grad()
    def _diagnostics(self, targets: Tensor, valid_mask: Tensor, temperature: float) -> dict[str, Tensor]:
        """Measure collapse on the target tokens (B, N, K) that are valid (B, N).

        ``target_entropy`` is the mean entropy of a token's target, ``mean_target_entropy`` the entropy of the mean
        target, both as fractions of log K. ``effective_rank`` is the participation ratio of the eigenvalues of the
        tokens' covariance, (sum of eigenvalues)^2 / (sum of squared eigenvalues).
        """
        p = self.heads.intra.target(targets, temperature, valid_mask).flatten(0, 1)
        weight = valid_mask.flatten().to(p.dtype)  # a mask instead of a selection, whose size the host would wait for
        weight = weight / weight.sum().clamp(min=1)
        tokens = targets.flatten(0, 1).to(p.dtype)
        centred = (tokens - weight @ tokens) * weight[:, None].sqrt()
        # Both Gram matrices have the non-zero eigenvalues of the covariance; the smaller one is cheaper.
        gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        return {
            "target_entropy": weight @ relative_entropy(p),
            "mean_target_entropy": relative_entropy(weight @ p),
            "effective_rank": gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-12),
        }

    @torch.no_grad()
    def after_step(self, output: StepOutput, progress: float) -> None:
        r"""Update the centers, then the teacher.

        .. math:: \theta_t \leftarrow m \theta_t + (1 - m) \theta_s

        with m rising to 1 along a cosine. Buffers of the network (averages of batch norms) and a shared CASA are
        copied from the student; the teacher's copy of CASA has no dropout.
        """
        if "class_mean" in output.state:
            self.heads.inter.update_center(output.state["class_mean"])
        self.heads.intra.update_center(output.state["token_mean"])
        momentum = cosine_momentum(cast(float, self.options.ema_start), progress)  # the constructor resolved it
        update_ema(self.teacher, self.network, momentum)
        update_ema(self.heads.teacher, self.heads.student, momentum)
        if self.options.casa_target == "shared" and "casa" in self.heads.student:
            self.heads.teacher["casa"].load_state_dict(self.heads.student["casa"].state_dict())

    def picture(self, views: Views) -> list[Panel]:
        """See :class:`Method`: reconstructions, and the matched crop of another volume."""
        image, restored = views["image"], self._student(views)[1]
        columns = restoration(views["student"], restored, image, views["hidden"])
        return [*columns, Panel("matched crop", image.roll(len(image) // 2, 0)[:, 0])]

    def problems(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Signs of collapse in the means of an epoch."""
        return collapse_warnings(diagnostics, self.options.collapse_guard)
