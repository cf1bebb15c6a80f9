"""Turn a table of prompts into an image dataset: Stable Diffusion on Ray, resumable, to any object store."""

__version__ = "0.1.0"
