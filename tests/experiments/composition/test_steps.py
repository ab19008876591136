"""How long a run is, where the data decide it."""

import pytest

from experiments.composition import steps
from experiments.composition.config import load_config
from vla_jax import sharding


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "expected"),
    [
        (0.0, 45.0, (1000, 50, 250)),  # steps, warm-up, evaluated every
        (10.0, 45.0, (450, 45, 22)),
        (2.5, 45.0, (112, 11, 5)),
        (100.0, 45.0, (1000, 50, 50)),  # steps are the most
        (0.1, 1.0, (1, 0, 1)),
        (10.0, 0.0, (1000, 50, 50)),  # the data are not known yet
    ],
)
def test_epochs_give_steps_warm_up_and_evaluations(
    epochs: float, per_epoch: float, expected: tuple[int, int, int]
) -> None:
    config = load_config("oxe_paligemma.py:tiny", [f"--config.epochs={epochs}"])
    run = steps.train_config(config, per_epoch)
    settings = steps.optimizer_config(config, per_epoch)
    assert (run.steps, settings.warmup_steps, run.eval_every) == expected
    assert config.steps == 1000


def test_a_warm_up_of_epochs_is_cut_too_and_no_evaluation_stays_none() -> None:
    config = load_config(
        "oxe_paligemma.py",
        ["--config.epochs=2", "--config.optim.warmup_epochs=0.5", "--config.eval_every=0"],
    )
    settings = steps.optimizer_config(config, 100.0)
    assert (settings.warmup_steps, settings.warmup_epochs) == (20, 0.0)
    assert steps.train_config(config, 100.0).eval_every == 0
    with config.unlocked():
        config.optim.warmup_epochs = 0.125
    settings = steps.optimizer_config(config, 100.0)
    assert (settings.warmup_steps, settings.warmup_epochs) == (0, 0.125)


def test_a_critic_learns_at_a_rate_of_its_own() -> None:
    own = ["--config.optim.lr=2e-5", "--config.rl.critic_lr=1e-3", "--config.rl.algorithm=ppo"]
    settings = steps.optimizer_config(load_config("oxe_paligemma.py:tiny", own), 0.0)
    ((pattern, factor),) = settings.faster
    assert pattern == "critic/value/*"
    assert factor * settings.lr == pytest.approx(1e-3)
    for algorithm in ("", "grpo"):  # there is none, or nothing moves it
        other = [*own[:2], f"--config.rl.algorithm={algorithm}"]
        settings = steps.optimizer_config(load_config("oxe_paligemma.py:tiny", other), 0.0)
        assert settings.faster == ()


@pytest.mark.slow
def test_the_head_alone_learns() -> None:
    def plan(*words: str) -> steps.Plan:
        own = ["--config.rl.algorithm=ppo", "--config.rl.head_only=True", *words]
        dims = ["action_names=x,gripper", "action_binary=gripper", "state_names=x"]
        own += [f"--config.model.{each}" for each in dims]
        config = load_config("blocks.py", own)
        return steps.plan(config, sharding.make_mesh(-1, 1, 1))

    learns = plan().abstract.params
    assert {name.partition("/")[0] for name in learns} == {"head", "critic"}
    with pytest.raises(ValueError, match=r"rl\.head_only: the head discrete has no parameters"):
        plan("--config.model.head=discrete")
