"""The process of worlds: `python -m experiments.rolling.child DESCRIPTOR NAME WORLDS`, begun by
processes.py, with which it talks over the connection of that descriptor.
"""

import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from experiments import sims
from experiments.rolling.episodes import perform
from experiments.rolling.processes import Trouble
from experiments.rolling.worlds import about


def main(descriptor: int, name: str, count: int) -> None:
    """Takes orders for its `count` worlds, by their places, until the other end is closed."""
    with Connection(descriptor) as connection:
        try:
            worlds = [sims.opened(name) for _ in range(count)]
            connection.send(about(worlds[0]))
            work: dict[int, Any] = {}
            while True:
                said = {}
                for place, told in connection.recv().items():
                    begins = place not in work
                    if begins:
                        work[place] = perform(worlds[place], told)
                    try:
                        said[place] = work[place].send(None if begins else told)
                    except StopIteration as end:
                        said[place] = end.value
                        del work[place]
                connection.send(said)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except (ValueError, ImportError) as error:
            connection.send(Trouble(str(error), mendable=True))
        except Exception:
            connection.send(Trouble(f"{name}: {traceback.format_exc()}", mendable=False))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
