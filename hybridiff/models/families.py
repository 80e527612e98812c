"""How pipelines call their denoiser, as data about their classes (Diffusers 0.42)."""

CONDITIONAL_FIRST = frozenset(
    {"LuminaPipeline", "LuminaText2ImgPipeline", "StableCascadePriorPipeline", "WuerstchenPriorPipeline"}
)


def conditional_first(pipeline: type) -> bool:
    """Whether a pipeline class doubles its batch as [conditional, unconditional]; others do as [unconditional, conditional]."""
    return any(base.__name__ in CONDITIONAL_FIRST for base in pipeline.__mro__)
