"""apdcli: diffusion language models on the command line, several tokens at a time."""

__version__ = "0.1.0"
