"""Threads beside the network: what is read ahead of it, in batches of squares, and which items are finished.

A bounded number of inputs is read ahead, so memory does not grow with the folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from nearfar.io.listing import Item
from nearfar.jobs.job import Reading, Results

A = TypeVar("A")
B = TypeVar("B")

WAITING = 1 << 28
"""Bytes of squares that may wait for the network before reading pauses."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read for an item, and what tells whether its source has changed."""

    item: Item
    reading: Reading
    source_tag: str


Square = tuple[Loaded, Tensor]
"""One of the squares of an item that was read."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Transformed squares with a result for each, the shape of the batch, network calls and seconds."""

    group: list[Square]
    results: list[Results]
    shape: int
    calls: int
    seconds: float


Finished = tuple[Loaded, Results, int]
"""An item all of whose squares are transformed, and the shape of the batch that the last of them was in."""


@contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers among which torch's threads are divided: one each, or all for a single worker."""
    before = torch.get_num_threads()
    threads = max(1, before // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[A], B], inputs: Iterable[A], depth: int, weigh: bool = False
) -> Iterator[B]:
    """`map` in threads, in order, never more than `depth` inputs before the consumer, or `WAITING` bytes of files."""
    pending: deque[Future[B]] = deque()
    for one in inputs:
        pending.append(pool.submit(function, one))
        while len(pending) >= depth or (weigh and heavy(pending)):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def heavy(pending: Iterable[Future[Any]]) -> bool:
    """Whether all files but the last two, which the readers may be at, weigh too much; it waits for them."""
    read = (future.result() for future in list(pending)[:-2])
    return sum(weight(one.reading) for one in read if isinstance(one, Loaded)) > WAITING


def weight(reading: Reading) -> int:
    """Bytes of a file's squares and of its alpha channel, which is as large as the file's picture."""
    alpha = reading.frame.alpha
    return reading.squares.nbytes + (0 if alpha is None else alpha.nbytes)


def whole(batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Finished]]]:
    """Each batch, and the items whose last square was in it."""
    rows: list[Results] = []
    for batch in batches:
        finished = []
        for (loaded, _), row in zip(batch.group, batch.results, strict=True):
            rows.append(row)
            if len(rows) == len(loaded.reading.squares):
                finished.append((loaded, Results.joined(rows), batch.shape))
                rows = []
        yield batch, finished
