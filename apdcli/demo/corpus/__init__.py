"""The demo corpus: a seeded program that writes it, and an exact checker for every family.

No text comes from elsewhere.  Knows nothing of tokenizers, tensors or models.
"""

from apdcli.demo.corpus.base import Example, Family, split_of
from apdcli.demo.corpus.registry import (
    FAMILIES,
    check,
    conversations,
    family,
    generate,
    probes,
)

__all__ = [
    "FAMILIES",
    "Example",
    "Family",
    "check",
    "conversations",
    "family",
    "generate",
    "probes",
    "split_of",
]
