"""The search finds what is to be found, stops when it is told to, and wastes little."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apdcli.tune.measure import ONE_A_STEP
from apdcli.tune.sampler import key_of
from apdcli.tune.search import Progress
from apdcli.tune.target import parse_quality, parse_speed
from tests.tune.synthetic import (
    OWN,
    Formulas,
    bench,
    search,
    seconds_per_step,
    setup,
    study_in,
    tokens_per_step,
)

ITEMS = 60


@pytest.fixture
def storage() -> Iterator[str]:
    """A file that is not on a disk where there is such a place: each write waits for the disk."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        yield str(Path(folder) / "t.db")


MEMORY = "sqlite://"


def speed_of(values: Any) -> float:
    return tokens_per_step(values) / seconds_per_step(values)


def test_it_finds_a_setting_nearly_as_good_as_any(storage: str) -> None:
    """All of a fine grid, whose qualities are known by formula, is what it is held against."""
    target = parse_speed("3x")
    found = search(study_in(storage), items=ITEMS, trials=30, target=target)
    assert found.ended == "trials"
    assert found.chosen is not None
    chosen = found.chosen.candidate
    assert chosen is not None
    least = 3 * speed_of(ONE_A_STEP)
    assert speed_of(chosen.values) >= 0.999 * least
    every = [
        {"mixture_weight": r / 20, "recompute_window": 16, "max_lookahead": m}
        for r in range(21)
        for m in (2, 4, 6, 8, 12, 16, 24, 32)
    ]
    able = [values for values in every if speed_of(values) >= least]
    answer = Formulas()
    best = max(sum(answer(i, values).score for i in bench(ITEMS).items) / ITEMS for values in able)
    assert chosen.quality >= 0.97 * best
    assert found.answers <= 31 * ITEMS


def test_the_papers_settings_come_first_and_nothing_is_tried_twice(storage: str) -> None:
    found = search(study_in(storage), trials=25, prune=False)
    space = setup().space
    keys = [key_of(space, c.values) for c in found.finished]
    assert keys[:6] == [key_of(space, values) for values in setup().first]
    assert len(set(keys)) == len(keys) == 25


def test_the_same_seed_tries_the_same() -> None:
    def tried(seed: int) -> list[Any]:
        return [dict(c.values) for c in search(study_in(MEMORY), trials=12, seed=seed).finished]

    assert tried(1) == tried(1)
    assert tried(1) != tried(2)


def test_hopeless_settings_are_given_up_early(storage: str) -> None:
    found = search(study_in(storage), items=120, trials=25)
    assert found.pruned
    assert all(24 <= len(c.measured.scores) < 120 for c in found.pruned)
    assert all(len(c.measured.scores) == 120 for c in found.finished)
    every = search(study_in(storage, "all"), items=120, trials=25, prune=False)
    assert found.answers < every.answers == 26 * 120
    # the front has lost nothing that counts
    best = max(c.quality for c in every.finished)
    assert max(c.quality for c in found.finished) >= 0.97 * best


def test_it_goes_on_where_it_stopped(storage: str) -> None:
    first = search(study_in(storage), trials=5)
    assert (first.new, first.ended) == (5, "trials")
    answer = Formulas()
    second = search(study_in(storage), trials=9, answer=answer)
    assert second.new == 4
    assert [c.number for c in second.finished][:5] == [c.number for c in first.finished]
    assert second.baseline == first.baseline
    assert not any(values == () for _, values in answer.asked), "one token a step was known"
    again = search(study_in(storage), trials=9)
    assert (again.new, len(again.finished)) == (0, len(second.finished))


def test_another_target_uses_what_is_known(storage: str) -> None:
    search(study_in(storage), items=ITEMS, trials=12, target=parse_speed("5x"))
    found = search(study_in(storage), items=ITEMS, trials=12, target=parse_quality("50%"))
    assert found.new == 0
    assert found.chosen is not None
    assert found.chosen.candidate is not None
    able = [c for c in found.finished if c.quality >= found.goal.quality]
    assert found.chosen.candidate.speed == max(c.speed for c in able)


def test_time_is_kept_and_the_unfinished_setting_waits_again(storage: str) -> None:
    study, answer = study_in(storage), Formulas()
    found = search(study, trials=50, timeout=2.2, answer=answer, clock=answer.clock, prune=False)
    assert found.ended == "timeout"
    assert found.seconds == pytest.approx(2.2, abs=0.011), "at most one answer more"
    assert found.new == 2, "63 answers with one token a step, and 61 with each setting"
    asked = study._study.get_trials(deepcopy=False)
    (cut,) = [t for t in asked if t.state.name == "FAIL"]
    later = search(study_in(storage), trials=found.new + 7, prune=False)
    assert dict(cut.params) in [dict(c.values) for c in later.finished[found.new :]]


def test_too_short_for_one_token_a_step(storage: str) -> None:
    answer = Formulas()
    found = search(study_in(storage), timeout=0.05, answer=answer, clock=answer.clock)
    assert (found.baseline, found.finished, found.ended) == (None, (), "timeout")


def test_ctrl_c_ends_it_with_what_there_is(storage: str) -> None:
    answer = Formulas()
    # one token a step takes 2 * 40 answers with the reference's, more or less
    found = search(study_in(storage), answer=answer, interrupted=lambda: len(answer.asked) > 250)
    assert found.ended == "interrupted"
    assert 0 < len(found.finished) < 20

    class Pressed(Formulas):
        """The second Ctrl-C unwinds, in the middle of an answer."""

        def __call__(self, *args: Any) -> Any:
            if len(self.asked) > 100:
                raise KeyboardInterrupt
            return super().__call__(*args)

    before = len(found.finished)
    found = search(study_in(storage), answer=Pressed())
    assert found.ended == "interrupted"
    assert len(found.finished) >= before


def test_a_mistake_in_an_answer_is_not_hidden_and_loses_nothing(storage: str) -> None:
    class Broken(Formulas):
        def __call__(self, *args: Any) -> Any:
            if len(self.asked) > 300:
                raise ZeroDivisionError("a bug")
            return super().__call__(*args)

    with pytest.raises(ZeroDivisionError):
        search(study_in(storage), answer=Broken())
    kept = study_in(storage).finished()
    assert kept
    assert len(search(study_in(storage)).finished) > len(kept)


def test_progress_is_told(storage: str) -> None:
    told: list[Progress] = []
    search(study_in(storage), trials=8, target=parse_speed("2x"), report=told.append)
    assert told[0].doing == "one token a step"
    assert {p.tried for p in told} >= set(range(8))
    best = [p.best for p in told if p.best is not None]
    assert best
    assert best[-1].quality == max(b.quality for b in best)


def test_the_reference_is_the_profiles_own_setting(storage: str) -> None:
    found = search(study_in(storage), trials=3, prune=False)
    assert dict(found.reference) == OWN
    assert dict(found.finished[0].values) == OWN
    own = found.finished[0].measured
    assert own.speed.median == pytest.approx(own.tokens_per_step, rel=1e-3)
    steps = found.steps_per_second
    assert steps == pytest.approx(1 / seconds_per_step(OWN), rel=1e-6)
