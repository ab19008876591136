"""Weights of the backbone in 8 bits, through torchao.

What is quantised: every linear layer of the image tower, its projector or resampler, and the
decoder: nearly all of a large policy's bytes, and of what a step reads. What is not: the token
table, norms, positions, readouts and the policy head, which are small or read in part, and whose
errors the robot would feel directly.

    int8          weights int8, one scale per output; activations as they are
    int8_dynamic  that, and activations int8 with a scale per token, chosen at each pass: integer
                  products
    float8        weights float8 (e4m3), one scale per output; activations as they are

Uncompiled it saves memory alone: torchao then runs slower than bfloat16. Speed comes with
`compile`.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear
from .network import Network

KINDS = ("int8", "int8_dynamic", "float8")


class Transposed(nn.Linear):
    """A Linear with its weight as torch has it, [out, in]: torchao quantises no other."""

    def __init__(self, layer: Linear) -> None:
        inputs, outputs = layer.kernel.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.weight = nn.Parameter(layer.kernel.T.contiguous(), requires_grad=False)
        self.bias = layer.bias  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def to_8_bits(network: Network, kind: str) -> None:
    """Quantises a loaded network in place. Raises ValueError for another kind than KINDS, and
    without torchao.
    """
    if kind not in KINDS:
        raise ValueError(f"quantise: expected one of {', '.join(KINDS)}, got {kind!r}")
    try:
        from torchao import quantization as ao  # only who asks for it needs it
    except ImportError as error:
        raise ValueError(
            f"quantise: {kind} needs torchao, which is not here ({error}): pip install torchao"
        ) from error
    configs: dict[str, Any] = {
        "int8": ao.Int8WeightOnlyConfig,
        "int8_dynamic": ao.Int8DynamicActivationInt8WeightConfig,
        "float8": ao.Float8WeightOnlyConfig,
    }
    for part in filter(None, (network.backbone, network.resampler)):
        for parent in list(part.modules()):
            for name, layer in list(parent.named_children()):
                # The output layer is read by ranges of tokens, as the token table is.
                if isinstance(layer, Linear) and name != "lm_head":
                    setattr(parent, name, Transposed(layer))
        ao.quantize_(part, configs[kind](set_inductor_config=False))
