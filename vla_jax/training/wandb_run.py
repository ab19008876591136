"""The rows of a run as a run of Weights & Biases: a view of metrics.jsonl, for who asks for it.

Where it goes is the package's own affair: `wandb login`, WANDB_ENTITY, WANDB_MODE=offline.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ID = "wandb_id"  # file of a work directory: the W&B run that it goes on in


class WandbRun:
    """One W&B run, however often the training is killed and continued.

    Rows that are computed again after a kill are sent again: "step" is the axis, so that they
    stand on top of the first ones.
    """

    def __init__(
        self, workdir: Path, project: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        """Opens the run whose id `workdir` keeps, or a new one. Raises ValueError, with what to do,
        when W&B does not let us.

        Args:
            workdir: a folder that is there.
            config: what W&B shows as the run's configuration.
            say: tells the reader that W&B is gone.
        """
        wandb, self._say = package(), say
        file = workdir / ID
        name = None if file.exists() else workdir.absolute().name  # it may be renamed there
        if name is not None:
            part = file.with_name(f"{ID}.part")
            part.write_text(secrets.token_hex(4) + "\n")
            os.replace(part, file)
        try:
            self._run: Any = wandb.init(
                project=project,
                id=file.read_text().strip(),
                name=name,
                dir=str(workdir),
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"--config.wandb={project}: expected W&B to open a run, got: {error} (wandb login;"
                ' or WANDB_MODE=offline, and wandb sync later; or --config.wandb="")'
            ) from error
        self._run.config.update(dict(config), allow_val_change=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, row: Mapping[str, int | float | None]) -> None:
        """Sends a row; null is left out."""
        self._try(
            lambda run: run.log({key: value for key, value in row.items() if value is not None})
        )

    def close(self, failed: bool) -> None:
        """Sends what is left, and whether the training ended with an error."""
        self._try(lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _try(self, call: Callable[[Any], object]) -> None:
        """Training goes on without W&B, whose process may be killed: the rows are in
        metrics.jsonl.
        """
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._run = None
            self._say(
                f"W&B is gone ({type(error).__name__}: {error}): nothing is sent to it any more;"
                " metrics.jsonl has every row"
            )


def package() -> Any:
    """The package wandb. Raises ValueError where it is not installed."""
    try:
        import wandb

        wandb.init  # noqa: B018 - a folder wandb/ here, which the package makes, is a module too
    except (ImportError, AttributeError) as error:
        raise ValueError(
            '--config.wandb: expected the package wandb, got none: pip install "vla_jax[wandb]", or'
            ' --config.wandb=""'
        ) from error
    return wandb
