"""The options block of a plans file, and copies of plans files. Modules are imported when needed."""

from nnunet_invariance.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "options": (
            "AnatomixTrainerOptions",
            "AuxiliaryLossOptions",
            "BaselineOptions",
            "ChannelDropoutOptions",
            "DenseContrastOptions",
            "EncoderDecoderOptions",
            "PUIRTrainerOptions",
            "PretrainedOptions",
            "TransferOptions",
        ),
        "block": ("read_options",),
        "unlabelled": ("UnlabelledOptions",),
        "style_options": ("ICMSegTrainerOptions", "MaskGenTrainerOptions", "StyleOptions"),
        "copies": ("FittedPlans", "preprocessing_command", "write_plans_copy"),
        "fit": ("fit_plans_to_checkpoint",),
        "nnformer": ("write_nnformer_plans",),
        "zscore": ("write_zscore_plans",),
    },
)
