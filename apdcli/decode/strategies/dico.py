"""Divide and conquer (DiCo, arXiv 2602.23792, algorithm 1; spec/dico.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from apdcli.decode.any_order_params import DicoParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler, confidence, logit_margin
from apdcli.decode.strategies.blocks import AnyOrder
from apdcli.decode.strategies.factor import safe_prefix
from apdcli.decode.types import Canvas, Commit, Pair

Cluster = tuple[int, int]  # half-open [start, end), absolute positions
DONE = -math.inf  # the confidence of a position that is decoded or outside the block
GROWTH = 1.1  # a cluster that became this much longer has advanced


@dataclass(frozen=True)
class View:
    """One forward as DiCo looks at it, by absolute position.

    Attributes:
        c: confidence; DONE everywhere but at the block's masked positions.
        margin: best logit minus second best, at the masked positions.
        ids: the drawn token, at the masked positions.
    """

    c: list[float]
    margin: dict[int, float]
    ids: dict[int, int]


class Dico:
    """Divide a block into clusters around seeds, conquer them in parallel, finalize the rest."""

    def __init__(
        self, shared: DecodeParams, own: DicoParams, sampler: Sampler | None = None
    ) -> None:
        self.early_stop = own.early_stop
        self._given = shared, own, sampler
        self._commits: Iterator[Commit] | None = None

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """The next forward's commit; between two of them the loop has written the last one."""
        if self._commits is None:
            # Whose commits they are stands apart: an iterator over this object's own would hold
            # it and be held by it, and the models' caches with them.
            self._commits = _Response(*self._given, canvas, pair).commits()
        return next(self._commits)


class _Response(AnyOrder):
    """The algorithm at work on one canvas."""

    def __init__(
        self,
        shared: DecodeParams,
        own: DicoParams,
        sampler: Sampler | None,
        canvas: Canvas,
        pair: Pair,
    ) -> None:
        super().__init__(shared, own, sampler)
        self.p = own
        self.canvas, self.pair = canvas, pair
        self.response = canvas.masked_left  # text between gaps is no part of it
        self.forwards = 0
        self.idle_forwards = 0  # in a row, without a commit

    def commits(self) -> Iterator[Commit]:
        """One a forward, block after block."""
        while True:
            self.b0, self.b1 = self.block(self.canvas)
            self.B = len(self._masked())
            yield from self._one_block()

    def _one_block(self) -> Iterator[Commit]:
        """Divide and conquer until the gate, then finalize."""
        for _ in range(int(self.p.gate * self.B)):  # a turn decodes a position at the least
            clusters = yield from self._divide()
            if not clusters:
                break
            yield from self._conquer(clusters)
            left = len(self._masked())
            if left == 0 or left / self.B < 1 - self.p.gate:
                break
            if self.idle_forwards == 2:
                break  # nothing changed since Divide found no seed: it would find none again
        yield from self._finalize()

    def _divide(self) -> Generator[Commit, None, list[Cluster]]:
        """Commit well-separated seeds and grow clusters of moderate confidence around them."""
        p = self.p
        clusters: list[Cluster] = []
        idle = 0
        # Once there were as many forwards as tokens, what is left goes to Finalize.
        for forward in range(min(p.divide_steps, self.response - self.forwards)):
            x = self._forward()
            g = self._guided(x.c)
            seeds = soft_nms(g, p.seeds, p.seed_threshold, sigma=self.B / 3)
            if not seeds:
                yield self._commit(x, [], clusters, "divide")
                break
            known, clusters = clusters, self._grow(clusters, seeds, g)
            yield self._commit(x, seeds, clusters, "divide")
            new_seed = any(not _inside(seed, known) for seed in seeds)
            advanced = forward == 0 or _advanced(known, clusters)
            idle = 0 if new_seed or advanced else idle + 1
            if idle == 2 or self._mean(g, clusters) >= p.low_threshold or not self._masked():
                break
        return self._shrink(clusters)

    def _conquer(self, clusters: list[Cluster]) -> Iterator[Commit]:
        """Decode every cluster in parallel by the prefix rule, its borders moving along."""
        p = self.p
        while clusters:
            x = self._forward()
            sure = {j for j in range(self.b0, self.b1) if x.c[j] > p.sure_threshold}
            safe: set[int] = set()
            for start, end in clusters:
                order = sorted((j for j in range(start, end) if x.c[j] > 0), key=lambda j: -x.c[j])
                safe.update(order[: safe_prefix([x.c[j] for j in order], p.factor)])
            if not safe:
                best = max(range(self.b0, self.b1), key=lambda j: x.c[j])
                safe = {best} if x.c[best] >= p.low_threshold else set()
            yield self._commit(x, sorted(sure | safe), clusters, "conquer")
            clusters = self._move_borders(clusters, x.c)
            if self._mean(x.c, clusters) < p.low_threshold:
                break

    def _finalize(self) -> Iterator[Commit]:
        """Commit by margin or by confidence, and one position where neither suffices."""
        p = self.p
        while masked := self._masked():
            x = self._forward()
            chosen = [j for j in masked if x.margin[j] > p.margin or x.c[j] > p.sure_threshold]
            chosen = chosen or [max(masked, key=lambda j: x.c[j])]
            yield self._commit(x, chosen, [], "finalize")

    def _forward(self) -> View:
        self.forwards += 1
        x = self.read(self.canvas, self.pair)
        ids, (c, margin) = x.to_host(confidence(x.logits, x.ids), logit_margin(x.logits))
        everywhere = [DONE] * self.canvas.end
        for j, c_j in zip(x.positions, c, strict=True):
            everywhere[j] = c_j
        return View(
            everywhere,
            dict(zip(x.positions, margin, strict=True)),
            dict(zip(x.positions, ids, strict=True)),
        )

    def _commit(self, x: View, chosen: list[int], clusters: list[Cluster], phase: str) -> Commit:
        self.idle_forwards = 0 if chosen else self.idle_forwards + 1
        return Commit(
            positions=tuple(chosen),
            ids=tuple(x.ids[j] for j in chosen),
            proposed=len(chosen),
            phase=phase,
            clusters=tuple(clusters),
        )

    def _guided(self, c: list[float]) -> list[float]:
        """Trajectory guidance: c_j w_k, w_k = exp(-lambda k), k from the first masked position."""
        if not self.p.guidance:
            return c
        u = 1 - self.canvas.masked_left / self.response
        first = self._masked()[0]
        last_weight = min(1.0, self.p.guidance_beta + self.p.guidance_alpha * u)
        decay = -math.log(last_weight) / max(1, self.b1 - first - 1)
        return [c_j * math.exp(-decay * max(0, j - first)) for j, c_j in enumerate(c)]

    def _grow(self, known: list[Cluster], seeds: list[int], g: list[float]) -> list[Cluster]:
        """Extend the seeds, or the known clusters they fall in, to their furthest neighbours."""
        touched = {cluster for cluster in known for seed in seeds if _inside(seed, [cluster])}
        origins = touched | {(s, s + 1) for s in seeds if not _inside(s, known)}

        def wall(j: int) -> bool:
            return g[j] < self.p.seed_threshold

        grown = [
            self._extend(
                origin, range(origin[0] - 1, self.b0 - 1, -1), range(origin[1], self.b1), wall
            )
            for origin in origins
        ]
        return merged([*grown, *(cluster for cluster in known if cluster not in touched)])

    def _move_borders(self, clusters: list[Cluster], c: list[float]) -> list[Cluster]:
        """Extend each cluster towards its neighbours and shrink it to masked ends."""

        def wall(j: int) -> bool:
            return c[j] <= self.p.low_threshold

        starts = [start for start, _ in clusters[1:]] + [self.b1]
        ends = [self.b0] + [end for _, end in clusters[:-1]]
        moved = [
            # The last position before the neighbour, or of the block, stays out.
            self._extend(
                cluster, range(cluster[0] - 1, end - 1, -1), range(cluster[1], start - 1), wall
            )
            for cluster, end, start in zip(clusters, ends, starts, strict=True)
        ]
        return merged(self._shrink(moved))

    def _extend(
        self, cluster: Cluster, leftwards: range, rightwards: range, wall: Callable[[int], bool]
    ) -> Cluster:
        start, end = cluster
        left = furthest(leftwards, wall, self.p.tolerance)
        right = furthest(rightwards, wall, self.p.tolerance)
        return start if left is None else left, end if right is None else right + 1

    def _shrink(self, clusters: list[Cluster]) -> list[Cluster]:
        """Cut clusters to their outermost masked positions; drop those that have none."""
        inside = [[j for j in range(*cluster) if self.canvas.masked[j]] for cluster in clusters]
        return [(masked[0], masked[-1] + 1) for masked in inside if masked]

    def _mean(self, c: list[float], clusters: list[Cluster]) -> float:
        """Mean of c over the masked positions in the clusters; 0 where there are none."""
        values = [c[j] for cluster in clusters for j in range(*cluster) if self.canvas.masked[j]]
        return sum(values) / len(values) if values else 0.0

    def _masked(self) -> list[int]:
        return [j for j in range(self.b0, self.b1) if self.canvas.masked[j]]


def soft_nms(scores: list[float], N: int, threshold: float, sigma: float) -> list[int]:
    """Up to N seeds; each damps the scores near it, by a Gaussian of width sigma, for the next."""
    left = list(scores)
    seeds: list[int] = []
    for _ in range(N):
        seed = max(range(len(left)), key=lambda j: left[j])
        if left[seed] <= 0 or scores[seed] < threshold:
            break
        seeds.append(seed)
        left = [
            s if s == DONE else s * (1 - math.exp(-((j - seed) ** 2) / sigma**2))
            for j, s in enumerate(left)
        ]
    return seeds


def furthest(positions: range, wall: Callable[[int], bool], tolerance: int) -> int | None:
    """The last position that is no wall before more than `tolerance` walls in a row; or None."""
    reached, walls = None, 0
    for j in positions:
        if not wall(j):
            reached, walls = j, 0
        elif walls == tolerance:
            break
        else:
            walls += 1
    return reached


def merged(clusters: Iterable[Cluster]) -> list[Cluster]:
    """Join clusters that touch or overlap; sorted."""
    joined: list[Cluster] = []
    for start, end in sorted(clusters):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _inside(position: int, clusters: Iterable[Cluster]) -> bool:
    return any(start <= position < end for start, end in clusters)


def _advanced(known: list[Cluster], clusters: list[Cluster]) -> bool:
    """Their number changed, or one of them grew by 10 %."""
    if len(known) != len(clusters):
        return True
    lengths = [[end - start for start, end in each] for each in (known, clusters)]
    return any(after / before >= GROWTH for before, after in zip(*lengths, strict=True))
