"""How the processes of `benchmark train` take turns: a number of steps in, a line of JSON out."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PRODUCT = (2304, 768, 4096)  # rows, contracted, columns: a projection of the 100m policy


def product_rate(product: Callable[[], object]) -> float:
    """FLOP/s of a product of the size PRODUCT at best: what a CPU can do in this process."""
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return 2.0 * PRODUCT[0] * PRODUCT[1] * PRODUCT[2] / best


def serve(
    train: Callable[[Iterator[int]], list[float]], memory: Callable[[], int], ready: dict[str, Any]
) -> None:
    """Answers with `ready`, then with each turn's losses, seconds and CPU seconds a step, and the
    most memory so far. `train(numbers)` trains one step for each number and returns when all have
    ended.
    """
    print(json.dumps(ready), flush=True)
    done = 0
    for line in sys.stdin:
        count = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        losses = train(iter(range(done, done + count)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        done += count
        answer = {
            "losses": losses,
            "seconds": wall / count,
            "cpu": cpu / count,
            "memory_gib": memory() / 2**30,
        }
        print(json.dumps(answer), flush=True)
