"""How many rows a batch should have: what the device can hold, and what still pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from apdcli.decode.any_order_params import AnyOrderParams
from apdcli.decode.checks import check, is_int
from apdcli.decode.params import AutoregressiveParams, strategy_info
from apdcli.decode.strategies.window import AUTO_MOST
from apdcli.engine.device import free_bytes, no_room
from apdcli.engine.session import Request
from apdcli.errors import DeviceError
from apdcli.models.formats import unfit
from apdcli.models.quantized import QuantizedLinear
from apdcli.models.rows import padded_bytes
from apdcli.models.transformer import Transformer

BatchSize = int | Literal["auto"]
ROWS = 256  # "auto" never takes more: by then arithmetic binds everywhere
CPU_POSITIONS = 512  # a CPU's matrix products gain nothing from more rows than these
SHARE = 0.9  # of what is free; the rest is for fragments and for what cannot be foreseen
GIB = 2**30


def capacity_of(request: Request) -> int:
    """Positions of a request's canvas: its prompt and its answer."""
    return len(request.prompt_ids) + request.shared.max_tokens


def drafted_by(request: Request) -> int:
    """Positions whose logits one step asks for, at most."""
    own, answer = request.own, request.shared.max_tokens
    if isinstance(own, AutoregressiveParams):
        return 1
    ahead = own.block_length if isinstance(own, AnyOrderParams) else own.max_lookahead
    if ahead == "auto":
        ahead = AUTO_MOST
    return min(ahead, answer) if isinstance(ahead, int) else answer


def recomputed_by(request: Request) -> int:
    """Positions that one step runs through its larger model, about; more in the first one."""
    own = request.own
    if isinstance(own, AutoregressiveParams):
        return 1
    if isinstance(own, AnyOrderParams):
        return drafted_by(request) if own.cache == "dual" else capacity_of(request)
    window = own.recompute_window
    return drafted_by(request) + window if isinstance(window, int) else capacity_of(request)


def row_bytes(requests: Sequence[Request]) -> int:
    """Memory that each row takes, at most: KV of its models, its logits, its activations.

    Of the logits, three arrays [drafted, vocab] in float32 are alive at once: the denoiser's, the
    verifier's, over which their mixture is written, and probabilities, of which some strategies
    choose; noise is made by pieces.
    Activations are those of the first step, which runs the whole prompt: in one layer, three
    arrays as wide as the MLP and eight as wide as the model; on a GPU, too, what
    attention over padded rows takes.
    """
    capacity, drafted = max(map(capacity_of, requests)), max(map(drafted_by, requests))
    first = max(len(r.prompt_ids) + drafted_by(r) for r in requests)
    total, widest = 0, 0
    for net in _asked(requests):
        c, size = net.config, net.model.embed_tokens.weight.element_size()
        total += 2 * c.num_layers * c.num_kv_heads * c.head_dim * capacity * size
        activations = first * (3 * c.intermediate_size + 8 * c.hidden_size) * size
        if net.model.embed_tokens.weight.device.type == "cuda":
            activations += padded_bytes(c, first, capacity, size)
        widest = max(widest, activations, drafted * c.vocab_size * size)
        total += drafted * c.vocab_size * 4
    return total + drafted * requests[0].pair.denoiser.config.vocab_size * 4 + widest


def _asked(requests: Sequence[Request]) -> list[Transformer]:
    """The networks that any of the requests asks."""
    pair = requests[0].pair
    infos = [strategy_info(request.strategy) for request in requests]
    nets = []
    if any(info.needs_denoiser for info in infos):
        nets.append(pair.denoiser)
    if pair.verifier is not None and any(info.needs_verifier for info in infos):
        nets.append(pair.verifier)
    return nets


def choose_size(requests: Sequence[Request], batch_size: BatchSize = "auto") -> int:
    """Rows to decode at once: `batch_size`, but never more than there are requests.

    "auto" takes as many as fit into nine tenths of the memory that is free, by
    :func:`row_bytes`, and 256 at the most. On a CPU it stops earlier, where a step of all rows
    runs 512 positions: from there on the matrix products are as fast as they get.

    Raises:
        ParameterError: below 1, or neither a number nor "auto".
        DeviceError: that many rows do not fit.
    """
    check(
        batch_size == "auto" or is_int(batch_size, 1),
        "batch_size",
        batch_size,
        'an integer >= 1 or "auto"',
    )
    if not requests:
        return 1
    free, each = free_bytes(requests[0].pair.device), row_bytes(requests)
    most = len(requests)
    if batch_size != "auto":
        rows = min(batch_size, most)
        if free is not None and rows > 1 and rows * each > free:
            raise DeviceError(
                f"{rows} rows at once need {rows * each / GIB:.1f} GiB and {free / GIB:.1f} GiB "
                f"are free; lower the batch size to {max(1, free // each)}, or use auto"
            )
        return rows
    if free is not None:
        most = min(most, int(SHARE * free) // each)
    if requests[0].pair.device.type == "cpu":
        most = min(most, CPU_POSITIONS // max(map(recomputed_by, requests)))
    return max(1, min(most, ROWS))


def out_of_memory(error: BaseException, rows: int, net: Transformer) -> DeviceError:
    """The one line for a forward of so many rows that found no room: as `no_room` has it."""
    weight = net.model.embed_tokens.weight
    whole = not any(isinstance(module, QuantizedLinear) for module in net.modules())
    return no_room(
        error,
        weight.device,
        "a forward of 1 row" if rows == 1 else f"a forward of {rows} rows at once",
        weight.dtype,
        shorten="lower --batch-size, --max-tokens or -M, or shorten the prompts",
        smaller=["--quantize int8"] if whole and unfit(net.config, "int8") is None else [],
    )
