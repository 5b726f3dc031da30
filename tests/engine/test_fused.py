"""Mixture, choice, comparison and count in one pass, against decode's own functions bit for bit.

The kernels run on Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest
tests/engine/test_fused.py` where triton is installed; on CUDA they are compiled.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apdcli.decode.sampling import NEVER, greedy
from apdcli.decode.strategies.apd import mixture, prefix
from apdcli.engine import fused

Judge = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if CUDA and not INTERPRETED else "cpu")


def _why_no_kernels() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return "" if CUDA or INTERPRETED else "no CUDA device, and TRITON_INTERPRET=1 is not set"


kernels = pytest.param(
    fused.by_triton,
    id="triton",
    marks=pytest.mark.skipif(bool(_why_no_kernels()), reason=_why_no_kernels() or "-"),
)
both = pytest.mark.parametrize("judge", [pytest.param(fused.plain, id="torch"), kernels])


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test's failure is the next one's; a warning is an error."""
    monkeypatch.setattr(fused, "_failed", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@dataclass
class Case:
    """d [m, vocab], a [m - 1, vocab or more], a draft of which the first m count, and R."""

    d: Tensor
    a: Tensor
    draft: Tensor
    weight: float

    @property
    def expected(self) -> int:
        """What `decode.strategies.apd` computes, step by step."""
        d, vocab = self.d.cpu(), self.d.shape[1]
        a = self.a.cpu()[:, :vocab].float().masked_fill(d[1:] == NEVER, NEVER)  # a copy
        target = greedy(mixture(d[1:], a, self.weight))
        return int(1 + prefix(self.draft.cpu()[1:] == target))

    def by(self, judge: Judge, padding: int = 0) -> int:
        """What `judge` finds, with so many rows of padding that would all be refused."""
        d, a, draft = self.d, self.a, self.draft
        if padding:
            d = torch.cat((d, d.new_full((padding, d.shape[1]), 7.0)))
            a = torch.cat((a, a.new_full((padding, a.shape[1]), float("nan"))))
            draft = torch.cat((draft, draft.new_full((padding,), -1)))
        count = torch.tensor([len(self.d)], device=DEVICE)
        before = [x.clone() for x in (d, a, draft, count)]
        found = judge(d.to(DEVICE), a.to(DEVICE), draft.to(DEVICE), count, self.weight)
        assert found.shape == (1,)
        assert found.dtype == torch.int64
        for x, old in zip((d, a, draft, count), before, strict=True):
            assert torch.equal(x.cpu(), old.cpu()) or x is a  # a's padding is nan
        return int(found)


def drawn(
    rows: int, vocab: int, weight: float, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16,
    wide: int = 0, banned: int = 0, agree: int | None = None,
) -> Case:  # fmt: skip
    """A case of random logits whose draft is the mixture's choice in all rows but `agree`."""
    made = torch.Generator().manual_seed(seed)
    d = 4 * torch.randn(rows, vocab, generator=made)
    d[:, torch.randperm(vocab, generator=made)[:banned]] = NEVER
    a = (4 * torch.randn(rows - 1, vocab + wide, generator=made)).to(dtype)
    own = a[:, :vocab].float().masked_fill(d[1:] == NEVER, NEVER)
    target = greedy(mixture(d[1:], own, weight))
    draft = torch.cat((d[:1].argmax(-1), target))
    if agree is not None and agree < rows:
        draft[agree] = (draft[agree] + 1) % vocab
    return Case(d, a, draft, weight)


@both
@pytest.mark.parametrize("weight", [0.0, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_random_logits(judge: Judge, dtype: torch.dtype, weight: float) -> None:
    for seed, agree in enumerate((1, 2, 5, 9, None)):
        case = drawn(9, 700, weight, seed=seed, dtype=dtype, wide=33, banned=40, agree=agree)
        assert case.expected == (agree or 9)
        assert case.by(judge) == case.expected
        assert case.by(judge, padding=7) == case.expected


@both
@pytest.mark.parametrize(("rows", "vocab"), [(1, 50), (2, 1), (2, 4096), (3, 4097), (7, 12289)])
def test_sizes(judge: Judge, rows: int, vocab: int) -> None:
    case = drawn(rows, vocab, 0.5, seed=rows)
    assert case.expected == rows
    assert case.by(judge) == rows


@both
@pytest.mark.parametrize("agree", [1, 31, 33, 255, 256])
def test_many_rows(judge: Judge, agree: int) -> None:
    case = drawn(256, 64, 0.5, agree=agree)
    assert case.by(judge, padding=3) == case.expected == agree


@both
def test_more_rows_than_are_compared_at_once(judge: Judge) -> None:
    case = drawn(300, 16, 0.5, agree=271)
    assert case.by(judge) == case.expected == 271


@both
def test_a_real_vocabulary(judge: Judge) -> None:
    """152,064 columns, of which the tokenizer knows 151,665, and the mask is one."""
    case = drawn(4, 151665, 0.5, wide=399, agree=3)
    case.d[:, 151664] = NEVER
    case.a[:, 151664] = 30.0
    case.a[:, 151665:] = 50.0  # nobody may look there
    case.d[1, 151663] = case.a[0, 151663] = 40.0  # the last that may be produced
    case.draft[1] = 151663
    assert case.by(judge) == case.expected == 3


@both
@pytest.mark.parametrize("places", [(0, 1), (3, 4099), (5, 8197, 4101), (12287, 12288), (511, 512)])
def test_the_first_among_equals(judge: Judge, places: tuple[int, ...]) -> None:
    """In one block, at the same place of two blocks, in two parts."""
    for first in (min(places), max(places)):
        d = torch.zeros(2, 12289)
        a = torch.zeros(1, 12289, dtype=torch.bfloat16)
        for place in places:
            d[1, place], a[0, place] = 3.0, 5.0
        case = Case(d, a, torch.tensor([0, first]), 0.5)
        assert case.by(judge) == case.expected == (2 if first == min(places) else 1)


@both
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_rows_without_any_id(judge: Judge, weight: float) -> None:
    d = torch.full((3, 9000), NEVER)
    a = torch.ones(2, 9000, dtype=torch.float16)
    for id_ in (0, 1, 8999):
        case = Case(d, a, torch.tensor([0, id_, 0]), weight)
        assert case.by(judge) == case.expected == (1 if id_ else 3)


@both
def test_logits_that_are_never_themselves(judge: Judge) -> None:
    """The verifier, too, may forbid; and what one of the two forbids is forbidden."""
    case = drawn(6, 300, 0.5, dtype=torch.float32, banned=30)
    case.a[:, ::3] = NEVER
    target = greedy(mixture(case.d[1:], case.a.clone(), 0.5))
    case.draft[1:] = target
    assert (target % 3 != 0).all()
    assert case.by(judge) == case.expected == 6


@both
def test_equal_sums_of_unequal_logits(judge: Judge) -> None:
    """All sums are exact in float32, so every rounding agrees, and most rows are full of ties."""
    made = torch.Generator().manual_seed(3)
    for seed in range(20):
        d = torch.randint(-8, 9, (12, 500), generator=made) / 4
        a = (torch.randint(-8, 9, (11, 500), generator=made) / 4).bfloat16()
        draft = torch.cat((d[:1].argmax(-1), (0.5 * d[1:] + 0.5 * a.float()).argmax(-1)))
        if seed % 2:
            draft[1 + seed // 2] += 1
        case = Case(d, a, draft, 0.5)
        assert case.by(judge) == case.expected == (1 + seed // 2 if seed % 2 else 12)


@both
def test_rows_that_stand_apart(judge: Judge) -> None:
    """Views of wider arrays, as the engine's buffers are."""
    case = drawn(5, 460, 0.4, agree=4)
    wide = torch.full((8, 512), 99.0)
    wide[:5, :460] = case.d
    apart = Case(wide[:5, :460], case.a, case.draft, case.weight)
    assert apart.by(judge) == case.expected == 4


@both
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 12), vocab=st.integers(1, 90), seed=st.integers(0, 999),
    weight=st.sampled_from([0.0, 0.25, 0.5, 0.75]), levels=st.integers(1, 6),
    length=st.integers(1, 12),
)  # fmt: skip
def test_any_case(
    judge: Judge, rows: int, vocab: int, seed: int, weight: float, levels: int, length: int
) -> None:
    """Few levels make many ties; -inf is one of them; the draft is right about half the time."""
    made = torch.Generator().manual_seed(seed)
    d = torch.randint(0, levels, (rows, vocab), generator=made).float()
    d[torch.rand(rows, vocab, generator=made) < 0.2] = NEVER
    a = torch.randint(0, levels, (rows - 1, vocab), generator=made).half()
    right = mixture(d[1:], a.float().masked_fill(d[1:] == NEVER, NEVER), weight).argmax(-1)
    guess = torch.where(torch.rand(rows - 1, generator=made) < 0.2, right + 1, right)
    draft = torch.cat((torch.zeros(1, dtype=torch.int64), guess))
    case = Case(d, a, draft, weight)
    assert case.by(judge) == case.expected
    # A shorter draft in the same arrays: the rest is padding.
    n = min(length, rows)
    short = Case(d[:n], a[: max(n - 1, 0)], draft[:n], weight)
    count = torch.tensor([n], device=DEVICE)
    found = judge(d.to(DEVICE), a.to(DEVICE), draft.to(DEVICE), count, weight)
    assert int(found) == short.expected


@both
def test_the_count_stays_on_the_device(judge: Judge) -> None:
    """The same arrays and another count, as a graph is replayed."""
    case = drawn(8, 100, 0.5)
    count = torch.tensor([8], device=DEVICE)
    given_ = [x.to(DEVICE) for x in (case.d, case.a, case.draft)]
    for n in (8, 3, 1):
        count.fill_(n)
        assert int(judge(*given_, count, 0.5)) == n


def test_a_kernel_that_fails_is_replaced_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    case = drawn(8, 100, 0.5, agree=6)

    def broken(*args: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(fused, "_installed", lambda: True)
    monkeypatch.setattr(fused, "_interpreted", lambda: True)
    monkeypatch.setattr(fused, "by_triton", broken)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [case.by(fused.accepted) for _ in range(3)] == [6, 6, 6]
    (warning,) = seen
    assert "Failed to find C compiler" in str(warning.message)
    assert "\n" not in str(warning.message)
    assert not fused.usable(DEVICE)


def test_which_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(fused, "_interpreted", lambda: False)
    monkeypatch.setattr(fused, "_installed", lambda: True)
    assert [fused.usable(device) for device in (cuda, cpu)] == [True, False]
    monkeypatch.setattr(fused, "_interpreted", lambda: True)
    assert fused.usable(cpu)
    monkeypatch.setattr(fused, "_installed", lambda: False)
    assert not fused.usable(cuda)


def test_the_torch_version_holds_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(d: Tensor, a: Tensor, weight: float) -> Tensor:
        seen.append(len(d))
        return mixture(d, a, weight)

    monkeypatch.setattr(fused, "mixture", watched)
    case = drawn(101, 64, 0.5)
    assert case.by(fused.plain) == 101
    assert max(seen) == 8
    assert sum(seen) == 100
