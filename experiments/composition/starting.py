"""The policy that a command begins with, told by --config.model.start alone."""

from pathlib import Path

from vla_jax.training.checkpoint import within

START = "--config.model.start"


def with_start(argv: list[str]) -> list[str]:
    """The command line with the folder of --config.model.start behind the config's colon too, as
    what the policy is made of is that run's. Raises ValueError without one.
    """
    words = list(argv)
    if {"-h", "--help"} & set(words):
        return words
    if START in words[:-1]:  # the value is the next word
        at = words.index(START)
        words[at : at + 2] = [f"{START}={words[at + 1]}"]
    given = [i for i, word in enumerate(words) if word.startswith(f"{START}=")]
    if len(given) != 1:
        raise ValueError(f"expected {START}=RUN/checkpoints, the policy that acts at first")
    start = within(Path(words[given[0]].partition("=")[2]).expanduser())
    words[given[0]] = f"{START}={start}"
    for i, word in enumerate(words):
        if word.startswith("--config="):
            words[i] = f"{word}{',' if ':' in word else ':'}{start}"
    return words
