"""The artefact of the head fast: it writes the strings that JAX writes and holds the robot where
they are not whole, in torch and in an exported program; and it needs no tokenizer for them.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments import export
from tests.export import programs, test_export
from vla_jax import saved
from vla_jax.export import artefact, derived
from vla_jax.models import fast_vocabulary
from vla_jax.models.decoding import extend
from vla_jax.models.heads import fast
from vla_jax.params import abstract, merge
from vla_jax.policy import JaxPolicy
from vla_jax.robot import torch_policy
from vla_jax.robot.torch_policy import decoding
from vla_jax.robot.torch_policy.token_heads import FastHead

pytestmark = pytest.mark.slow
K, NAMES = 2, test_export.NAMES


def vocabulary() -> fast_vocabulary.FastVocabulary:
    """Of few chunks that come often, so that each whole one is a piece."""
    rng = np.random.default_rng(0)
    few = rng.uniform(-1, 1, (6, K, len(NAMES)))
    return fast_vocabulary.fit(few.repeat(9, axis=0), NAMES, "data", scale=8.0, tokens=400)


def checkpoint(root: Path, monkeypatch, **model) -> Path:
    """One of a jittered policy with the vocabulary."""
    known, meta = vocabulary(), test_export.Checkpointer
    monkeypatch.setattr(
        test_export,
        "Checkpointer",
        lambda where, body, data: meta(where, {**body, "action_vocabulary": known.to_json()}, data),
    )
    return test_export.checkpoint(root, head="fast", chunk=K, **model)


def in_jax(source: saved.SavedPolicy) -> JaxPolicy:
    params = {name: jnp.asarray(x) for name, x in source.params.items()}
    return JaxPolicy(abstract(source.build)[0], params, source.io("blocks"))


def shown(policy: JaxPolicy, images):
    policy.reset("push the red block")
    policy.act(images)


def seen_by(policy: JaxPolicy):
    """The tokens of the frames that its head looked at last."""
    if policy._config.history == "interleaved":
        return tuple(policy._kept.frames)
    return (policy._model(policy._params).sequence(policy.taken()[0]),)


def frames(policy, n: int = 5):
    rng = np.random.default_rng(1)
    return [
        {
            name: rng.integers(0, 30 * i + 9, (32, 32, 3), np.uint8)
            for name in policy._config.cameras
        }
        for i in range(n)
    ]


def whole_strings(source: saved.SavedPolicy) -> saved.SavedPolicy:
    """The policy with words such that it writes one piece, a whole chunk, and then the end."""
    graphdef = abstract(source.build)[0]
    params = {name: jnp.asarray(x) for name, x in source.params.items()}
    head = merge(graphdef, params).head
    config, known = head.config, head.config.vocabulary
    start, end = config.token_range
    key, rng = "backbone/embed/embedding", np.random.default_rng(2)
    words = np.array(params[key])
    words[start:end] = 0.0
    whole = [i for i, piece in enumerate(known.pieces) if len(piece) == known.numbers]
    assert len(whole) > 4
    words[[end - 1 - i for i in whole]] = rng.normal(size=(len(whole), words.shape[1]))
    params[key] = jnp.asarray(words)

    @jax.jit
    def hidden(params, window):
        model = merge(graphdef, params)
        tokens = jax.tree.map(lambda *parts: jnp.concatenate(parts), *window)
        prefix = model.prefix_context(tokens, len(window), None).prefix
        scores = model.backbone.logits(prefix.hidden[:, None], (start, end))[:, 0]
        chosen = jnp.argmax(scores, -1).astype(jnp.int32) + start
        return prefix.hidden, extend(model.backbone, prefix, chosen).hidden

    policy, before, after = JaxPolicy(graphdef, params, source.io("blocks")), [], []
    for images in frames(policy, 8):
        shown(policy, images)
        first, second = hidden(params, seen_by(policy))
        before.append(np.asarray(first)[0])
        after.append(np.asarray(second)[0])
    words[start] = 9 * (np.mean(after, 0) - np.mean(before, 0))
    return dataclasses.replace(source, params={**source.params, key: words})


@pytest.mark.parametrize(
    "model",
    [
        {"history": "interleaved", "window": 2},
        {"backbone": "llava", "history": "one_step", "window": 1, "cameras": test_export.TWO},
    ],
    ids=["paligemma, interleaved", "llava, one step"],
)
def test_torch_writes_the_strings_of_jax(model, tmp_path, monkeypatch):
    source = export.source(checkpoint(tmp_path, monkeypatch, **model))
    artefact.write(source, tmp_path / "artefact", "float32")
    policy = torch_policy.load(tmp_path / "artefact")
    ours = in_jax(source)
    graphdef = abstract(source.build)[0]

    @jax.jit
    def tokens(params, window):
        model = merge(graphdef, params)
        stacked = jax.tree.map(lambda *parts: jnp.concatenate(parts), *window)
        context = model.prefix_context(stacked, len(window), None)
        return model.head.decode_tokens(context, jax.random.key(0))

    written = []
    decode = decoding.decode
    monkeypatch.setattr(
        "vla_jax.robot.torch_policy.network.decode",
        lambda *args: written.append(decode(*args)) or written[-1],
    )
    ours.reset("push the red block")
    policy.reset("push the red block", "blocks")
    strings, alone = set(), []
    for images in frames(ours):
        chunk = ours.act(images)
        out = policy.act(images, executed=chunk[0])
        ids, scores = tokens(source.params, seen_by(ours))
        np.testing.assert_array_equal(written[-1][1].numpy(), ids)
        np.testing.assert_allclose(written[-1][2].numpy(), scores, atol=1e-4)
        np.testing.assert_allclose(out["actions"], chunk, atol=1e-5)
        assert out["held"] == bool(torch.isnan(policy.stages["action"]).all())
        assert (out["confidence"]["token"] == 0) == out["held"]
        strings.add(tuple(np.asarray(ids)[0].tolist()))
        alone.append(
            (images, None, alone[-1][3][0] if alone else None, out["actions"], out["held"])
        )
    assert len(strings) > 1
    assert ours.held == sum(each[-1] for each in alone)
    policy.reset("push the red block", "blocks")
    rows = torch_policy.act_in_row(policy, [each[:3] for each in alone])
    for one, row in zip(alone, rows, strict=True):
        np.testing.assert_allclose(row["actions"], one[3], atol=1e-5)
        assert row["held"] == one[4]


def test_whole_strings_are_proven_and_go_through_onnx(tmp_path, monkeypatch):
    origin = checkpoint(tmp_path, monkeypatch, history="interleaved", window=2)
    source = whole_strings(export.source(origin))
    proof = artefact.write(source, tmp_path / "artefact", "float32")
    with np.load(tmp_path / "artefact" / "golden.npz") as recorded:
        whole = np.isfinite(recorded["action"]).all((1, 2))
    assert whole.sum() >= 2
    for row in proof["float32"]:
        assert row.difference <= 1e-5 * max(1, row.largest), row
        assert row.largest > 0.05, row
    body = json.loads((tmp_path / "artefact" / "config.json").read_text())["network"]["head"]
    assert (body["kind"], body["tokens"]) == ("fast", K * 7 + 1)
    assert len(body["pieces"]) == vocabulary().end
    proof = programs.proven(tmp_path / "artefact", tmp_path / "onnx")
    for largest, difference in proof.values():
        assert difference <= 1e-4 * max(1, largest)
        assert largest > 0.05
    assert "An action of NaN is none" in (tmp_path / "onnx" / "README.md").read_text()
    readme = (tmp_path / "artefact" / "README.md").read_text()
    assert "`held` is then True" in readme
    policy = torch_policy.load(tmp_path / "artefact")
    policy.reset("push the red block", "blocks")
    out = policy.act(frames(in_jax(source))[0])
    assert not out["held"]
    assert 0 < out["confidence"]["token"] <= 1
    assert len(out["confidence"]["steps"]) == K


def test_a_program_stops_with_the_string():
    """What is exported has a loop that ends with the last string, as the plain one."""
    ran = []

    def step(done):
        ran.append(1)
        ids = done.ids.index_copy(1, done.num_tokens, torch.tensor([[7], [5 + len(ran)]]))
        return done._replace(num_tokens=done.num_tokens + 1, ids=ids)

    start = decoding.Decoded(torch.tensor([1]), torch.full((2, 9), -1), torch.zeros(2, 9, 3), ())
    done = decoding.repeated(step, start, 8, 7)
    assert len(ran) == 2
    assert done.ids[:, :4].tolist() == [[-1, 7, 7, -1], [-1, 6, 7, -1]]
    ran.clear()
    assert decoding.repeated(step, start, 8, None).ids[0, 1:].tolist() == [7] * 8
    assert len(ran) == 8


def test_torch_reads_strings_as_jax_does():
    """Of every kind: whole, cut, too long, endless."""
    known = vocabulary()
    config = fast.FastConfig(K, 7, (6,), 900, known)
    body = {
        "chunk": K, "action_dim": 7, "binary": [6], "end": 900, "tokens": config.tokens,
        "scale": known.scale, "pieces": [" ".join(map(str, piece)) for piece in known.pieces],
    }  # fmt: skip
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (50, K, 7))
    whole, _ = known.write(values, config.tokens)
    random = rng.integers(0, known.size, (300, config.tokens))
    cut = np.concatenate([whole[:, 1:], whole[:, :1]], axis=1)
    ids = 900 - 1 - np.concatenate([whole, random, cut])
    logits = rng.normal(size=(*ids.shape, known.size)).astype(np.float32)
    action, probability = FastHead(8, body).actions(torch.from_numpy(ids), torch.from_numpy(logits))
    np.testing.assert_allclose(action.numpy(), fast.FastHead(8, config).actions(ids), atol=1e-6)
    assert np.isfinite(action.numpy()[:50]).all()
    assert np.isnan(action.numpy()[50:]).mean() > 0.5
    assert probability.shape == (400, K * 7)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    length = known.encode(values[:1])[0]
    row = [log_p[0, i, ids[0, i] - config.token_range[0]] for i in range(len(length) + 1)]
    np.testing.assert_allclose(probability[0].numpy(), np.exp(np.mean(row)), rtol=1e-5)
    assert derived.held({"network": {"head": {"kind": "discrete"}}}) == ""
