"""RoboVLMs' arrays under our names: prefixes, tied tables, and every array of a released size."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.robovlms import config as robovlms_config
from experiments.robovlms import names as robovlms_names
from tests.experiments.robovlms import torch_reference as reference
from tests.experiments.robovlms.released_config import changed, write_json
from vla_jax import build
from vla_jax import params as flat
from vla_jax.models.backbones import kosmos2
from vla_jax.weights import pretrained


@pytest.mark.parametrize("prefix", ["module.model.", "_forward_module.model.", "model.", ""])
def test_prefix_variants_give_the_same_arrays(prefix: str, tmp_path: Path) -> None:
    state = {
        "backbone.text_model.model.embed_tokens.weight": torch.arange(6.0).reshape(3, 2),
        "backbone.text_model.lm_head.weight": torch.arange(6.0).reshape(3, 2),
        "action_token": torch.ones(2),
        "act_head.rnn.bias_ih_l0": torch.ones(4),
        "act_head.rnn.bias_hh_l0": torch.full((4,), 2.0),
        "act_head.gpt.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "act_head.gpt.wpe.weight": torch.ones(3, 2),
    }
    torch.save(
        {"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "w.pt"
    )
    files, left = robovlms_names.renamed(pretrained.open_weights(tmp_path / "w.pt"))
    assert files.arrays.keys() == {
        "text_model.model.embed_tokens.weight", "action_token", "act_head.rnn.bias_l0",
        "act_head.gpt.wpe.weight",
        "act_head.fc.weight", "act_head.fc.bias",
    }  # fmt: skip
    np.testing.assert_array_equal(
        files.arrays["act_head.fc.weight"], np.eye(2)
    )  # nn.Identity where widths agree
    assert left == ["act_head.gpt.h.0.attn.bias", "text_model.lm_head.weight"]
    np.testing.assert_array_equal(files.arrays["act_head.rnn.bias_l0"], np.full(4, 3.0))
    state["backbone.text_model.lm_head.weight"] += 1
    torch.save(
        {"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "w.pt"
    )
    with pytest.raises(
        ValueError, match=r"text_model\.lm_head\.weight and .*embed_tokens\.weight differ"
    ):
        robovlms_names.renamed(pretrained.open_weights(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("head", "count"),
    [("LSTMDecoder", 41_210_950), ("FCDecoder", 6_577_222), ("GPTDecoder", 106_315_846)],
)
def test_every_array_of_a_released_size_fits(head: str, count: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        policy = reference.Policy(
            "kosmos", reference.HEADS[head](2048, 1024, 1, 10, 16), 1, released=True
        )
    body = changed(
        image_size=224,
        window_size=16,
        fwd_pred_next_n=10,
        act_head__type=head,
        act_head__hidden_size=1024,
    )
    arrays = {
        name: np.broadcast_to(np.float32(0), tuple(value.shape))
        for name, value in policy.checkpoint().items()
    }
    opened = pretrained.WeightFiles(tmp_path, "torch", arrays)
    config = robovlms_config.translate(write_json(tmp_path, body)).config
    config.model.variant = "2-patch14-224"
    shapes = flat.abstract(build.model(config))[1]
    files, _ = robovlms_names.renamed(opened)
    table = robovlms_names.names(config, kosmos2.hf_names(kosmos2.CONFIGS["2-patch14-224"]))
    plan = pretrained.plan(files, table, shapes)
    assert plan.problems == []
    # PyTorch's LSTM has a second bias in each layer.
    second = 4 * 4 * 1024 if head == "LSTMDecoder" else 0
    assert (
        sum(math.prod(s.shape) for name, s in shapes.items() if name.startswith("head/"))
        == count - second
    )
