"""The sizes of the small modern backbones beside what the hub's files say of each release.

No file of the hub is here: the numbers are those that others read off config.json and the weights,
in public code of 2025 and 2026 that refuses other ones.
"""

import functools
import math
from typing import Any

import pytest

from tests.models.backbones import test_qwen3vl, test_smolvlm
from vla_jax import params as flat
from vla_jax.models.backbones import qwen3vl, smolvlm

# What config.json of a release has other than that of test_smolvlm.HUB (500m) and test_qwen3vl.HUB
# (4b); None: it leaves it out. That of 2b as transformers 5 writes it.
SMOLVLM = {
    "256m": {
        "text_config": {
            "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
            "num_hidden_layers": 30, "num_key_value_heads": 3,
        },
    },
    "2.2b": {
        "scale_factor": 3,
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": None,
            "num_hidden_layers": 24, "num_key_value_heads": 32, "rope_theta": 130000,
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "patch_size": 14,
            "num_attention_heads": 16, "num_hidden_layers": 27,
        },
    },
}  # fmt: skip
QWEN3VL = {
    "2b": {
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
            "num_hidden_layers": 28, "rope_theta": None, "rope_scaling": None,
            "rope_parameters": {
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_theta": 5000000,
                "rope_type": "default",
            },
        },
        "vision_config": {"out_hidden_size": 2048},
    },
}  # fmt: skip


def of_release(body: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A config.json with what is other in it."""
    out = dict(body)
    for key, value in other.items():
        inside = isinstance(value, dict) and key in body
        out[key] = of_release(body[key], value) if inside else value
        if value is None:
            del out[key]
    return out


@pytest.mark.parametrize("name", SMOLVLM)
def test_the_config_file_of_a_smolvlm_is_that_of_our_size(name: str) -> None:
    body = of_release(test_smolvlm.HUB, SMOLVLM[name])
    assert smolvlm.hf_config(body) == smolvlm.CONFIGS[name]


@pytest.mark.parametrize("name", QWEN3VL)
def test_the_config_file_of_a_qwen3vl_is_that_of_our_size(name: str) -> None:
    body = of_release(test_qwen3vl.HUB, QWEN3VL[name])
    assert qwen3vl.hf_config(body) == qwen3vl.CONFIGS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "released"), [("256m", 256_484_928), ("2.2b", 2_246_784_880)])
def test_a_smolvlm_has_as_many_numbers_as_the_released_weights(name: str, released: int) -> None:
    """So its output layer is none of its token table."""
    build = functools.partial(smolvlm.SmolVLM, smolvlm.CONFIGS[name])
    _, shapes, _ = flat.abstract(build)
    assert sum(math.prod(shape.shape) for shape in shapes.values()) == released
