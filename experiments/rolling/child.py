"""The process of a world: `python -m experiments.rolling.child DESCRIPTOR NAME`, begun by
worlds.py, with which it talks over the connection of that descriptor.
"""

import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from experiments import sims
from experiments.rolling.episodes import perform
from experiments.rolling.worlds import Trouble, about


def main(descriptor: int, name: str) -> None:
    """Takes orders until the other end is closed."""
    with Connection(descriptor) as connection:
        try:
            sim = sims.opened(name)
            connection.send(about(sim))
            while True:
                work = perform(sim, connection.recv())
                answer: Any = None
                while True:
                    try:
                        connection.send(work.send(answer))
                    except StopIteration as end:
                        connection.send(end.value)
                        break
                    answer = connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except (ValueError, ImportError) as error:
            connection.send(Trouble(str(error), mendable=True))
        except Exception:
            connection.send(Trouble(f"{name}: {traceback.format_exc()}", mendable=False))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
