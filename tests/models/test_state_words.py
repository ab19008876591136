"""The state as words of the prompt: openpi's text and ids, the same in JAX and torch, for every
frame its own.
"""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import sentencepiece
import torch

from experiments.composition import spaces
from experiments.configs import oxe_paligemma
from tests.fakes import FakeBackbone, jittered, make_batch
from tests.test_policy import IO, KEY, SPEC, STEPS, D, K, N, P, T, episode, window
from vla_jax import build, params
from vla_jax.models import state_words
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.state_words import TEXT, StateWords, prompt
from vla_jax.models.tokens import StateConfig
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.policy import JaxPolicy
from vla_jax.robot.state_words import WORDS
from vla_jax.robot.torch_policy.prompt import Prompt
from vla_jax.robot.torch_policy.tokenizer import Tokenizer
from vla_jax.types import Seen

SENTENCES = ["push the red block left", "push the green block to the right side"]
# Two tokens each but for one of one, all others than the prompt's.
TABLE = StateWords(
    tuple((9 + i % 7, 16 + i % 5) if i != 1 else (8,) for i in range(len(WORDS))), (22, 23)
)


def by_openpis_rule(instruction: str, state: np.ndarray) -> str:
    """The prompt of pi0.5, of a normalised state."""
    numbers = [int(np.floor((min(x, 1.0) + 1) * 128)) for x in state.astype(np.float64)]
    bins = [-1 if x < 0 else min(x, 255) for x in numbers]
    said = instruction.strip().replace("_", " ").replace("\n", " ")
    return f"Task: {said}, State: {' '.join(str(x) for x in bins)};\nAction: "


def states() -> np.ndarray:
    """Jittered, at every edge and next to it, and out of range; [1 t 3]."""
    edges = np.linspace(-1, 1, 257).astype(np.float32)
    near = [np.nextafter(edges, x, dtype=np.float32) for x in (np.float32(-9), np.float32(9))]
    for x in near:  # beside 0 the smallest normal numbers: XLA takes the others for 0
        x[128] = np.sign(x[128]) * np.finfo(np.float32).tiny
    far = np.float32([-1e30, -3, -1.0001, 1.0001, 7, 1e30])
    drawn = np.random.default_rng(0).uniform(-1.1, 1.1, 300).astype(np.float32)
    every = np.concatenate([edges, *near, far, drawn])
    return every[: len(every) // 3 * 3].reshape(1, -1, 3)


def in_torch(words: StateWords, ids, mask, state, there):
    body = json.loads(json.dumps(dataclasses.asdict(words)))
    given = {"prompt": ids, "prompt_mask": mask, "proprio": state, "proprio_mask": there}
    return Prompt(body, 10**6)(
        SimpleNamespace(**{k: None if x is None else torch.tensor(x) for k, x in given.items()})
    )


@pytest.mark.parametrize("digits", [True, False], ids=["digits", "bytes"])
def test_ids_are_openpis_of_every_state_in_jax_and_torch(digits, tmp_path):
    """Beside sentencepiece on strings written by hand; what torch's tokenizer says too."""
    backbone = build.BACKBONES["paligemma"]
    backbone.train_tiny_tokenizer([*SENTENCES, *[TEXT] * digits], tmp_path / "words")
    encoder = backbone.load_tokenizer(tmp_path / "words")
    made, words = prompt(encoder, True)
    assert words is not None
    spoken = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "words" / "tokenizer.model")
    )
    state, there = states(), np.ones((1, 3), bool)
    ids, valid = map(np.asarray, jax.jit(words.tokens)(state, there))
    standalone = Tokenizer(
        encoder.definition(), {**made._asdict(), "encode": None, "state_words": True}
    )
    for said in (" push_the red\nblock left ", "put 12  apples, State: 3 ;"):
        first = made.encode(said)
        assert standalone.encode(said) == first
        for row in range(0, state.shape[1], 7):
            text = by_openpis_rule(said, state[0, row])
            expected = [encoder.before[0], *spoken.encode(text)]
            assert first + list(ids[row][valid[row]]) == expected, text
    zeros = np.zeros((len(ids), 0), np.int64)
    in_both = in_torch(words, zeros, zeros.astype(bool), state[0], None)
    np.testing.assert_array_equal(in_both[0], ids)
    np.testing.assert_array_equal(in_both[1], valid)


@pytest.mark.slow
@pytest.mark.parametrize("name", build.BACKBONES)
def test_every_backbones_trained_tokenizer_tells_the_state(name, tmp_path):
    """Its whole prompt at once has the ids of its parts; `-` stands for what a robot lacks."""
    backbone = build.BACKBONES[name]
    backbone.train_tiny_tokenizer([*SENTENCES, TEXT], tmp_path / "words")
    encoder = backbone.load_tokenizer(tmp_path / "words")
    made, words = prompt(encoder, True)
    assert words is not None
    state = np.float32([[[-0.3, 0.9, 0.2]]])
    ids, valid = words.tokens(state, np.array([[True, False, True]]))
    assert ids.shape == (1, words.count(3))
    got = made.encode(SENTENCES[0]) + [int(i) for i in np.asarray(ids)[np.asarray(valid)]]
    told = f"Task: {SENTENCES[0]}, State: 89 - 153;\nAction: "
    whole = encoder.ids(encoder.template.replace("{}", told))
    assert got == [*encoder.before, *whole, *encoder.closing]


def test_a_tokenizer_that_joins_numbers_with_their_neighbours_is_refused(tmp_path):
    backbone = build.BACKBONES["paligemma"]
    backbone.train_tiny_tokenizer([*SENTENCES, "9; 8; 7; 9; 19; 9; 9;"], tmp_path / "words")
    with pytest.raises(ValueError, match=r"does not join .*State: 7;.*model.state_words=False"):
        prompt(backbone.load_tokenizer(tmp_path / "words"), True)


def test_torch_refuses_ids_that_are_no_words():
    with pytest.raises(ValueError, match="state_words: expected ids below 20 of 258 words"):
        Prompt(dataclasses.asdict(TABLE), 20)
    with pytest.raises(ValueError, match="expected ids below 99 of 258 words"):
        Prompt({"words": [[1]], "after": []}, 99)


def policy(history: str, stated: bool = True):
    """(graphdef, jittered params) of a small policy whose head draws."""
    config = VLAConfig(
        T, K, D, ("primary", "wrist"), history=history, readouts=N,
        state=StateConfig(P, 1) if stated else None, state_words=TABLE if stated else None,
    )  # fmt: skip

    def make(rngs):
        backbone = FakeBackbone(rngs)
        sizes = HeadConfig(
            K, D, (2,), tokens=N, hidden=8, layers=1, mlp=(8,), attention_heads=2, window=T
        )
        return VLA(backbone, FlowHead(backbone.width, sizes, rngs), config, rngs)

    return jittered(make, 0.3)


@pytest.mark.slow
def test_it_is_the_text_and_each_frame_has_its_own():
    """Readouts are those of a policy that is given the whole text as its instruction, frame by
    frame; masked numbers do not matter.
    """
    graphdef, flat = policy("head")
    plain = policy("head", stated=False)[0]
    obs, rng = make_batch(t=T).obs, np.random.default_rng(2)
    state = rng.uniform(-1.2, 1.2, (2, T, P)).astype(np.float32)
    there = np.array([[True, True], [True, False]])
    obs = obs._replace(proprio=state, proprio_mask=there)
    read = jax.jit(lambda obs: params.merge(graphdef, flat).readouts(obs))
    read_plain = jax.jit(lambda obs: params.merge(plain, flat).readouts(obs))
    got = read(obs)
    ids, valid = (np.asarray(x).reshape(2, T, -1) for x in TABLE.tokens(state, there))
    for t in range(T):
        rows = [[*obs.prompt[b][obs.prompt_mask[b]], *ids[b, t][valid[b, t]]] for b in range(2)]
        longest = max(map(len, rows))
        text = np.zeros((2, longest + 1), np.int32)
        mask = np.zeros(text.shape, bool)
        for b, row in enumerate(rows):
            text[b, : len(row)], mask[b, : len(row)] = row, True
        whole = read_plain(obs._replace(prompt=text, prompt_mask=mask))
        np.testing.assert_allclose(got[:, t], whole[:, t], atol=5e-6)
    assert np.abs(got[1, 0] - got[1, 1]).max() > 1e-2
    moved = state + np.float32([[[0, 0]], [[0, 0.4]]])  # a number that the second robot lacks
    np.testing.assert_array_equal(read(obs._replace(proprio=moved)), got)
    moved = state + np.float32([[[0, 0]], [[0.4, 0]]])
    assert np.abs(read(obs._replace(proprio=moved))[1] - got[1]).min(axis=0).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("history", ["head", "interleaved"])
def test_rollouts_are_windows_and_sessions_together_as_each_alone(history):
    graphdef, flat = policy(history)
    act = jax.jit(lambda obs, key: params.merge(graphdef, flat).act(obs, key))
    one, (images, states), taken = JaxPolicy(graphdef, flat, IO), episode(), []
    one.reset("ab")
    for now in range(STEPS):
        acted = one.act({name: frames[now] for name, frames in images.items()}, states[now])
        expected = act(window(now, taken, images, states), jax.random.fold_in(KEY, now))
        np.testing.assert_allclose(acted, SPEC.unnormalise(np.asarray(expected)[0]), atol=2e-5)
        taken.append(acted[0])
    together = one.sessions(2)
    for each in together:
        each.reset("ab")
    for now in range(STEPS):
        frame = {name: frames[now] for name, frames in images.items()}
        seen = [Seen(frame, states[now]), Seen(frame, states[(now + 1) % STEPS])]
        first, second = JaxPolicy.act_together(together, seen)
        np.testing.assert_allclose(first[0], taken[now], atol=2e-5)
        assert np.abs(second - first).max() > 1e-3  # another state, another action
    with pytest.raises(ValueError, match="proprio: expected a, gripper, got None"):
        one.act(frame)


@pytest.mark.parametrize("wrong", [{"proprio": False}, {"layout": "robovlms"}], ids=str)
def test_without_a_state_or_in_robovlms_prompts_it_is_refused(wrong):
    config = oxe_paligemma.get_config("tiny")
    config.model.update({"proprio": True, "state_words": True})
    config = spaces.resolve(config)
    build.model(config)
    config.model.update(wrong)
    with pytest.raises(ValueError, match=r"state_words: expected model.proprio=True and .*prefix"):
        build.model(config)


def test_the_blank_words_are_as_many():
    assert len(state_words.BLANK.words) == len(WORDS)
