"""Style views of labelled images by a latent diffusion model (arXiv 2411.05223); the extra ``diffusion``."""

__all__: list[str] = []  # import from the modules
