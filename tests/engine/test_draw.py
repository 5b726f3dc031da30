"""Draws at T > 0 without an array of noise: the kernels against torch, on Triton's interpreter.

`TRITON_INTERPRET=1 python -m pytest tests/engine/test_draw.py` where triton is installed; on CUDA
they are compiled. What the noise is, and its law, is `tests/decode/test_noise.py`'s.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from apdcli.bench.memory import LiveBytes
from apdcli.decode import sampling
from apdcli.decode.noise import RUN, KeyedNoise
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import NEVER, Sampler, filtered, greedy
from apdcli.decode.strategies.apd import mixture
from apdcli.engine import fused
from apdcli.engine.sampling import KernelSampler, make_sampler
from tests.engine.test_fused import DEVICE, INTERPRETED, _why_no_kernels

SHAPINGS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 5},
    {"top_p": 0.8},
    {"top_k": 50, "top_p": 0.9},
)
kernels = pytest.mark.skipif(bool(_why_no_kernels()), reason=_why_no_kernels() or "-")
Draw = Callable[[Tensor, KeyedNoise, int], Tensor]
both = pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda d, g, first: sampling.drawn(d, g.params, g, first), id="torch"),
        pytest.param(fused.draw_by_triton, id="triton", marks=kernels),
    ],
)
judges = pytest.mark.parametrize(
    "judge",
    [
        pytest.param(fused.plain, id="torch"),
        pytest.param(fused.by_triton, id="triton", marks=kernels),
    ],
)


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test's failure is the next one's; a warning is an error."""
    monkeypatch.setattr(fused, "_failed", False)
    monkeypatch.setattr(fused, "_compared", set())
    if INTERPRETED and importlib.util.find_spec("triton"):
        from apdcli.engine import draw_kernels

        monkeypatch.setattr(draw_kernels, "SEARCHED", 1024)  # it takes as long as what is searched
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def keyed(vocab: int, temperature: float = 0.7, number: int = 3, **shaping: Any) -> KeyedNoise:
    params = DecodeParams(temperature=temperature, seed=2**62 + 7, **shaping)
    return KeyedNoise(params, torch.tensor([params.seed, number], device=DEVICE), vocab, 2)


def logits(rows: int, vocab: int, seed: int = 0, banned: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    d = 3 * torch.randn(rows, vocab, generator=made)
    d[:, torch.randperm(vocab, generator=made)[:banned]] = NEVER
    return d.to(DEVICE)


def whole(d: Tensor, noise: KeyedNoise, first: int = 0) -> Tensor:
    """The draw as the specification has it, with all of the noise at once."""
    all_rows = KeyedNoise(noise.params, noise.key, d.shape[1], 10**6)
    return (filtered(d, noise.params) + all_rows.piece(first, first + len(d))).argmax(-1)


@both
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
@pytest.mark.parametrize("vocab", [1, 50, 4 * RUN, 4 * RUN + 1])
def test_a_draw(draw: Draw, vocab: int, shaping: dict[str, Any]) -> None:
    d = logits(3, vocab, seed=vocab, banned=vocab // 10)
    before = d.clone()
    noise = keyed(vocab, number=2**33 + 1, **shaping)
    for first, rows in ((0, 3), (3, 1)):
        assert torch.equal(draw(d[:rows], noise, first), whole(d[:rows], noise, first))
    assert torch.equal(d, before)


@both
@pytest.mark.parametrize("temperature", [1e-320, 1e-6, 1.0, 100.0])
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
def test_temperatures(draw: Draw, temperature: float, shaping: dict[str, Any]) -> None:
    d = logits(4, 300)
    noise = keyed(300, temperature, **shaping)
    ids = draw(d, noise, 0)
    assert torch.equal(ids, whole(d, noise))
    if temperature < 1e-5:
        assert torch.equal(ids, d.argmax(-1))


@both
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
def test_equal_logits(draw: Draw, shaping: dict[str, Any]) -> None:
    """Ties with the last that is kept are kept: the noise chooses among them."""
    d = logits(3, 700, banned=30).mul_(2).round_().div_(2)
    for number in range(3):
        noise = keyed(700, 1.3, number, **shaping)
        assert torch.equal(draw(d, noise, 0), whole(d, noise))


@both
@pytest.mark.parametrize("top_k", [1, 2, 7, 699, 700, 10**6])
def test_no_more_than_k_are_drawn(draw: Draw, top_k: int) -> None:
    d = logits(3, 700, banned=50)
    best = d.topk(min(top_k, 700)).indices
    for number in range(3):
        ids = draw(d, keyed(700, 2.0, number, top_k=top_k), 0)
        assert (best == ids[:, None]).any(-1).all()
        assert torch.equal(ids, whole(d, keyed(700, 2.0, number, top_k=top_k)))


@both
@pytest.mark.parametrize("top_p", [1e-300, 1e-6, 0.5, 0.999, 1.0])
def test_the_nucleus_alone_is_drawn(draw: Draw, top_p: float) -> None:
    d = logits(3, 700, banned=50)
    for number in range(3):
        noise = keyed(700, 2.0, number, top_p=top_p)
        ids = draw(d, noise, 0)
        assert filtered(d, noise.params).gather(1, ids[:, None]).isfinite().all()
        assert torch.equal(ids, whole(d, noise))


@both
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
def test_signs_zeros_and_rows_without_any_id(draw: Draw, shaping: dict[str, Any]) -> None:
    d = torch.full((7, 90), NEVER, device=DEVICE)
    d[1] = -0.0
    d[2] = logits(1, 90).abs_()[0]
    d[3] = -d[2]
    d[4, 80] = -1e30
    d[5, 3:9] = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 1e30, 1e30], device=DEVICE)
    d[6, ::2] = 1e-38
    noise = keyed(90, **shaping)
    ids = draw(d, noise, 0)
    assert torch.equal(ids, whole(d, noise))
    assert ids[0] == 0
    assert ids[4] == 80


@both
def test_a_view_of_a_wider_array(draw: Draw) -> None:
    wide = logits(6, 460)
    wide[:, 400:] = 50.0  # nobody may look there
    d = wide[1:5, :400]
    noise = keyed(400, top_p=0.9)
    assert torch.equal(draw(d, noise, 0), whole(d.contiguous(), noise))


@judges
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "weight"),
    [(torch.float32, 0.3), (torch.bfloat16, 0.0), (torch.bfloat16, 0.3), (torch.bfloat16, 0.9)],
)
def test_how_much_of_a_draft_is_accepted(
    judge: Callable[..., Tensor], dtype: torch.dtype, weight: float, shaping: dict[str, Any]
) -> None:
    """The target is drawn from the mixture, with the noise that the draft was drawn with."""
    rows, vocab = 5, 500
    d, noise = logits(rows, vocab, banned=40), keyed(vocab, **shaping)
    a = logits(rows, vocab + 33, seed=1).to(dtype)
    raw = a[: rows - 1, :vocab].float().masked_fill(d[1:] == NEVER, NEVER)
    target = torch.cat((whole(d[:1], noise), whole(mixture(d[1:], raw, weight), noise, 1)))
    for agreeing, length in ((5, 5), (2, 5), (4, 3), (1, 1)):
        draft = target.clone()
        draft[agreeing : agreeing + 1] += 1
        count = torch.tensor([length], device=DEVICE)
        assert int(judge(d, a, draft, count, weight, noise)) == min(agreeing, length)


@kernels
def test_kernels_make_no_large_array() -> None:
    d, noise = logits(4, 16_000), keyed(16_000, top_k=50, top_p=0.9)
    a, count = logits(3, 16_000), torch.tensor([4], device=DEVICE)
    with torch.inference_mode(), LiveBytes() as live:
        draft = fused.draw_by_triton(d, noise, 0)
        fused.by_triton(d, a, draft, count, 0.5, noise)
    assert live.peak < d.nbytes / 50


def test_a_sampler_of_kernels_draws_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "usable", lambda device: False)
    d = logits(1, 40, banned=2).expand(5, -1)
    samplers = [KernelSampler(DecodeParams(temperature=1, seed=s), DEVICE) for s in (4, 4, 5)]
    first, same, other = ([s.draw(d, s.noise(d)).tolist() for _ in range(4)] for s in samplers)
    assert first == same != other
    assert len({tuple(ids) for ids in first}) == 4
    noise = samplers[0].noise(d)
    assert isinstance(noise, KeyedNoise)
    assert torch.equal(samplers[0].draw(d[2:], noise, 2), samplers[0].draw(d, noise)[2:])


def test_a_sampler_of_kernels_may_be_greedy() -> None:
    d = logits(3, 40)
    sampler = KernelSampler(DecodeParams(), DEVICE)
    assert sampler.noise(d) is None
    assert torch.equal(sampler.draw(d, None), greedy(d.cpu()).to(DEVICE))


class FakeGenerator(torch.Generator):
    """A generator that a machine without the device can make."""

    def __new__(cls, device: object = None) -> FakeGenerator:
        return super().__new__(cls, "cpu")


def test_which_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device keeps its noise where kernels fail: the same seed gives the same tokens."""
    monkeypatch.setattr(fused, "_interpreted", lambda: False)
    cpu = torch.device("cpu")
    assert type(make_sampler(DecodeParams(), cpu)) is Sampler
    for installed, failed, kind in (
        (True, True, KernelSampler),
        (True, False, KernelSampler),
        (False, False, Sampler),
    ):
        monkeypatch.setattr(fused, "_installed", lambda installed=installed: installed)
        monkeypatch.setattr(fused, "_failed", failed)
        monkeypatch.setattr(torch, "Generator", FakeGenerator)  # CUDA's needs a device
        assert type(make_sampler(DecodeParams(), torch.device("cuda"))) is kind


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "usable", lambda device: not fused._failed)


@pytest.mark.usefixtures("installed")
def test_draws_that_fail_are_replaced_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> Tensor:
        raise RuntimeError("no ptxas\nand more")

    monkeypatch.setattr(fused, "draw_by_triton", broken)
    d, noise = logits(4, 60), keyed(60)
    with pytest.warns(RuntimeWarning, match=r"no ptxas\)") as told:
        made = [fused.drawn(d, noise) for _ in range(3)]
    assert len(told) == 1
    assert all(torch.equal(ids, whole(d, noise)) for ids in made)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
def test_the_first_draw_of_each_kind_is_compared(
    shaping: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    d = logits(4, 60)

    def lies(d: Tensor, noise: KeyedNoise, first: int) -> Tensor:
        return (whole(d, noise, first) + 1) % 60

    monkeypatch.setattr(fused, "draw_by_triton", lambda *case: whole(*case))
    fused.drawn(d, keyed(60))  # that temperature's are right says nothing of a filter's
    if not shaping:
        fused._compared.clear()
    monkeypatch.setattr(fused, "draw_by_triton", lies)
    noise = keyed(60, **shaping)
    with pytest.warns(RuntimeWarning, match="first draw is not torch's"):
        assert torch.equal(fused.drawn(d, noise), whole(d, noise))
    assert torch.equal(fused.drawn(d, noise), whole(d, noise))  # by torch, without another word


@pytest.mark.usefixtures("installed")
def test_a_tie_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are as good as each other but for rounding: whichever is taken, it may stay."""
    d, noise = logits(4, 60), keyed(60, 1.0)
    best = whole(d, noise)
    row = filtered(d[2:3], noise.params) + noise.piece(2, 3)
    other = int(best[2] + 1) % 60
    d[2, other] += (row[0, best[2]] - row[0, other]) * (1 - 1e-7)
    chosen = best.clone()
    chosen[2] = other
    monkeypatch.setattr(fused, "draw_by_triton", lambda *case: chosen)
    assert torch.equal(fused.drawn(d, noise), chosen)
    assert not fused._failed


def test_counts_that_agree_but_for_rounding() -> None:
    d, a = torch.zeros(4, 50), torch.zeros(3, 50)
    for row in range(3):
        d[row + 1, row] = a[row, row] = 4.0
    d[2, 30] = a[1, 30] = 4.0 * (1 - 1e-7)
    one, two, three = (torch.tensor([n]) for n in (1, 2, 3))
    assert fused.agree(two, two, d, a, 0.5)
    assert fused.agree(two, three, d, a, 0.5)  # row 2 is a tie
    assert fused.agree(three, two, d, a, 0.5)
    assert not fused.agree(one, two, d, a, 0.5)
    for none in (0, -3, 4, 9):
        assert not fused.agree(torch.tensor([none]), two if none < 4 else one + none, d, a, 0.5)
    noise = keyed(50).at(torch.tensor([5, 0]))
    assert not fused.agree(two, three, d, a, 0.5, noise)  # with noise it is none
