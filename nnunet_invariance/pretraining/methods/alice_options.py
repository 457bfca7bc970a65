"""Settings of Alice's pre-training, and the two sets of them that the release and the paper's figures describe."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from nnunet_invariance.errors import OptionError
from nnunet_invariance.networks.architectures.nnformer import NNFORMER
from nnunet_invariance.networks.heads.casa import HEADS
from nnunet_invariance.pretraining.data.patients import EVERYONE, patients_of
from nnunet_invariance.pretraining.ranges import check_range


@dataclass(frozen=True)
class AliceOptions:
    """Settings of ``pretrain alice``, given as ``--set field=value``; ``preset=a-code|a-paper`` sets several at once.

    Attributes:
        pairs: pairs of crops a step and rank; 0 means half the planned batch size, at least 1.
        mask_ratio: share of the cells that is hidden from the student.
        mask_mode: ``block3d`` hides single cells, ``tube`` hides columns of cells along the first axis, with
            the release's encoder along z.
        encoding: ``dense`` gives the student zeros for hidden voxels; ``sparse`` keeps hidden cells out of its
            convolutions and norms, and fills them with a learned token a stage before the decoder (arXiv 2301.03580).
        casa: ``residual`` as in the release; ``plain`` as drawn in the paper: attention and output map alone.
        casa_target: the target's CASA is an average of the student's (``ema``) or equals it (``shared``).
        target_kv: tokens that the target attends to, the teacher's ``decoder``'s or ``encoder``'s.
        mim_voxels: voxels whose reconstruction counts, ``masked`` or ``all``; padding never does.
        score_threshold: pairs whose match is less sure have no inter-volume term; scores lie in [-1, 1].
        collapse_guard: ``center`` subtracts a running mean from the teacher's logits, ``sinkhorn`` gives every code an
            equal share of the batch, ``none`` does neither.
        weight_inter: weight of the class-token term between the two volumes of a pair.
        weight_intra: weight of the token term within one volume.
        weight_mim: weight of masked reconstruction; 0 switches it off, -1 chooses it: 10 on images scaled to
            [0, 1], 1 on z-scored ones.
        student_temperature: softmax temperature of the student.
        teacher_temperature: the teacher's, after its warm-up.
        teacher_temperature_start: the teacher's in step 0; rises linearly over the first 3 % of the run.
        ema_start: the teacher's momentum in step 0; goes to 1 along a cosine.
        alignment: what aligns the crops of a pair: "coordinates", "sam" (pairs mined by ``pretrain sam``),
            "same-volume" or "random"; the flag ``--pairs``.
        patients: pattern whose first group is the patient in a case's name; the two volumes of a pair are of different
            patients; the flag ``--patients``.
        hidden: width of the projection head's MLP; 0 means eight times the token stage's channels, at most 2048.
        codes: size of the code book, and width of CASA.

    Raises:
        OptionError: a word that its field does not know, a number out of range, or a pattern that is none.
    """

    pairs: int = 0
    mask_ratio: float = 0.75
    mask_mode: Literal["block3d", "tube"] = "block3d"
    encoding: Literal["dense", "sparse"] = "dense"
    casa: Literal["residual", "plain"] = "residual"
    casa_target: Literal["ema", "shared"] = "ema"
    target_kv: Literal["decoder", "encoder"] = "decoder"
    mim_voxels: Literal["masked", "all"] = "masked"
    score_threshold: float = 0.7
    collapse_guard: Literal["center", "sinkhorn", "none"] = "center"
    weight_inter: float = 1.0
    weight_intra: float = 1.0
    weight_mim: float = -1.0
    student_temperature: float = 0.1
    teacher_temperature: float = 0.01
    teacher_temperature_start: float = 0.008
    ema_start: float = 0.996
    alignment: str = "coordinates"
    patients: str = EVERYONE
    hidden: int = 0
    codes: int = 512

    #: Settings by the name of a preset; fields that are given beside it win.
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "a-code": {
            "mask_mode": "tube",
            "casa_target": "shared",
            "weight_mim": 5.0,  # the release weighs half the mean squared error, of images in [0, 1], with 10
            "hidden": 2048,
        },
        "a-paper": {"encoding": "sparse", "casa": "plain", "target_kv": "encoder", "hidden": 2048},
    }
    #: The preset of a planned network, by its class, where none is given.
    presets_of_networks: ClassVar[dict[str, str]] = {NNFORMER: "a-code"}

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise OptionError(f"--set {name}={value}: expected one of {known}. Correct the word.")
        patients_of((), self.patients)  # a pattern that is none is named before anything is written
        check_range(self, 0, math.inf, "pairs", "hidden", "weight_inter", "weight_intra")
        check_range(self, -1, math.inf, "weight_mim")
        check_range(self, 0, 1, "mask_ratio", ends=False)
        check_range(self, -1, 1, "score_threshold")
        check_range(self, 0, 1, "ema_start")
        temperatures = ("student_temperature", "teacher_temperature", "teacher_temperature_start")
        check_range(self, 0, math.inf, *temperatures, ends=False)
        if self.codes < HEADS or self.codes % HEADS:
            raise OptionError(f"--set codes={self.codes}: expected a multiple of {HEADS}, CASA's heads. Correct it.")
