"""One forward for all rows of a batch, with the eager engine behind it.

A device may have no kernel for a shape, or a wrong one. Where a forward fails, or gives a row other
numbers than the eager engine does, one warning is given, and from then on the eager engine runs the
rows one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from apdcli.engine.device import attention_kernels, is_full
from apdcli.models.packed import Packed
from apdcli.models.rows import RowCache, RowSlot, Span, hidden_rows, padded_length

# How far the first hidden states may be from the eager engine's, in units of their size.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


def hidden_of(net: Packed, cache: RowCache, spans: Sequence[Span]) -> Tensor:
    """Hidden states [sum of wanted, hidden] after the last norm: those wanted of all spans.

    Args: see :func:`apdcli.models.rows.hidden_rows`.
    """
    device = net.embedding.device
    with attention_kernels(device):
        if not net.rows_failed:
            try:
                made = hidden_rows(net, cache, spans)
                right = _is_right(net, cache, spans, made)
                why = None if right else "a row's first result is not the eager engine's"
            except RuntimeError as error:
                if is_full(error):
                    raise
                why = str(error).split("\n")[0]
            if why is None:
                return made
            net.rows_failed = True
            message = f"batches do not work here ({why}); the eager engine goes on, slower"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return torch.cat([_alone(net, cache, span) for span in spans])


def _alone(net: Packed, cache: RowCache, span: Span) -> Tensor:
    """The eager engine's hidden states [wanted, hidden] of one row, written to its slot."""
    tokens = span.tokens.to(net.embedding.device)
    slot = RowSlot(cache, span.row)
    hidden = net.net.hidden(tokens[None], span.start, slot)[0]
    return hidden[span.wanted.start : span.wanted.stop]


def _is_right(net: Packed, cache: RowCache, spans: Sequence[Span], made: Tensor) -> bool:
    """Whether the last row is the eager engine's; asked once for each length that is padded to.

    Of a CPU nobody asks: there a row goes through the very calls that serve it alone.
    """
    length = padded_length(max(len(span.tokens) for span in spans))
    if not checks(net.embedding.device) or length in net.rows_checked:
        return True
    net.rows_checked.add(length)
    expected = _alone(net, cache, spans[-1]).float()
    off = made[len(made) - len(expected) :].float() - expected
    allowed = TOLERANCE[net.embedding.dtype] * expected.pow(2).mean().sqrt()
    return bool(off.pow(2).mean().sqrt() <= allowed)


def checks(device: torch.device) -> bool:
    """Whether a device's first results are compared."""
    return device.type != "cpu"
