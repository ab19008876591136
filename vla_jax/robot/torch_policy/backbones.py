"""The backbones in torch: PaliGemma, Kosmos-2, LLaVA, SmolVLM2, Qwen3-VL, OpenFlamingo.

Each does what its namesake in vla_jax/models/backbones does. `body` is "backbone" of config.json.

Axes: n sequences, s tokens, r tokens read out, l text, v visual tokens of an image, m visual tokens
beside the sequence, c width, w width of visual tokens, q action tokens, h w pixels of an image.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Cache, attend, sinusoid
from .layers import Attention, BlockConfig, Linear, Norm, PreLayerFn, Stack, scaled
from .vision import (
    QwenVisionConfig,
    QwenViT,
    Resampler,
    ResamplerConfig,
    VisionConfig,
    ViT,
    shuffle,
)

MERGE = 2  # patches of a side that become one token of Qwen3-VL


class Media(NamedTuple):
    """Visual tokens beside the sequence: tokens[n m w], and mask[n s m]: which token sees which."""

    tokens: Tensor
    mask: Tensor


class Embed(nn.Module):
    """The token table, also the output layer where that is tied."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding[tokens]


class Decoder(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.layers = Stack(config, depth)
        self.norm = Norm(config.width, config.norm, config.eps, config.norm_bias)


class Backbone(nn.Module):
    """What all have: an image tower, a token table, a decoder. Subclasses say what differs."""

    cross_attends = False
    text_scale = 1.0

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        tower = {**body["vision"], "block": BlockConfig(**body["vision"]["block"])}
        self.block, self.patch = BlockConfig(**body["block"]), body["vision"]["patch"]
        self.width = self.visual_width = self.block.width
        self.vision, self.embed = self._tower(tower), Embed(body["vocab"], self.width)
        self.decoder = Decoder(self.block, body["depth"])
        own = body.get("lm_head", False)  # an output layer that is not the token table
        self.lm_head = Linear(self.width, body["vocab"], False) if own else None

    def _tower(self, body: dict[str, Any]) -> nn.Module:
        self.vision_config = VisionConfig(**body)
        return ViT(self.vision_config)

    def side(self, size: int) -> int:
        """Tokens of a side of an image of `size` pixels that have a row and a column in their
        positions; 0: they have none.
        """
        del size
        return 0

    def embed_image(self, images: Tensor) -> Tensor:
        """uint8 [n h w 3] -> [n v w]; w = c where the images stand in the sequence."""
        raise NotImplementedError

    def embed_text(self, tokens: Tensor) -> Tensor:
        """[n l] -> [n l c]."""
        x = self.embed(tokens)
        return x if self.text_scale == 1.0 else scaled(x, self.text_scale)

    def add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """The decoder's input [n s c] of x[n s c] and positions[n s]."""
        del positions
        return x

    def pre_layer_fn(self, media: Media | None) -> PreLayerFn | None:
        """What comes before each layer; None: nothing."""
        del media
        return None

    def encode(
        self,
        x: Tensor,
        mask: Tensor,
        positions: Tensor,
        num_queries: int,
        media: Media | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states [n r c] after the final norm, at the last `num_queries` tokens; see Stack
        for the other arguments.
        """
        x, pre_layer_fn = self.add_positions(x, positions), self.pre_layer_fn(media)
        x = self.decoder.layers(x, mask, positions, num_queries, pre_layer_fn, cache)
        return self.decoder.norm(x)

    def logits(self, hidden: Tensor, token_range: tuple[int, int]) -> Tensor:
        """float32 logits [n s bins] of hidden states [n s c], of the tokens token_range[0] to
        token_range[1] - 1.
        """
        if self.lm_head is not None:
            kernel = self.lm_head.kernel[:, token_range[0] : token_range[1]]
            return hidden.to(kernel.dtype).float() @ kernel.float()
        table = self.embed.embedding[token_range[0] : token_range[1]]
        return hidden.to(table.dtype).float() @ table.float().T


class PaliGemma(Backbone):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.text_scale, self.cap = self.width**0.5, body["final_softcap"]
        self.projector = Linear(self.vision_config.width, self.width)

    def embed_image(self, images: Tensor) -> Tensor:
        return self.projector(self.vision(images))

    def logits(self, hidden: Tensor, token_range: tuple[int, int]) -> Tensor:
        out = super().logits(hidden, token_range)
        return self.cap * torch.tanh(out / self.cap) if self.cap else out


class LatentPool(nn.Module):
    """Learned queries attend to the projected tokens [n v w] of an image and to themselves -> [n
    latents c].
    """

    def __init__(self, vision: int, latents: int, config: BlockConfig) -> None:
        super().__init__()
        self.dense = Linear(vision, config.width)
        self.latents = nn.Parameter(torch.empty(latents, config.width))
        self.attn = Attention(config)

    def forward(self, tokens: Tensor) -> Tensor:
        n, latents = len(tokens), self.latents.shape[0]
        x = torch.cat([self.dense(tokens), self.latents[None].expand(n, -1, -1)], 1)
        s = x.shape[1]
        mask = torch.ones(n, s, s, dtype=torch.bool, device=x.device)
        positions = torch.zeros(n, s, dtype=torch.int64, device=x.device)
        return self.attn(x, latents, mask, positions)


class Kosmos2(Backbone):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        pool = BlockConfig(**{**body["block"], "sub_norms": False})
        self.projector = LatentPool(self.vision_config.width, body["latents"], pool)

    def embed_image(self, images: Tensor) -> Tensor:
        x = self.vision(images)
        y = x.float()
        unit = y * torch.rsqrt((y * y).sum(-1, keepdim=True).clamp(min=1e-24))
        return self.projector(unit.to(x.dtype))

    def add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        first = 2  # fairseq's: the padding index, which is 1, plus one
        return (x.float() * self.width**0.5 + sinusoid(positions + first, self.width)).to(x.dtype)


class Projector(nn.Module):
    """One linear layer, or two with an exact GELU between them."""

    def __init__(self, vision: int, width: int, two: bool) -> None:
        super().__init__()
        self.first = Linear(vision, width)
        self.second = Linear(width, width) if two else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x if self.second is None else self.second(F.gelu(x))


class Llava(Backbone):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.projector = Projector(
            self.vision_config.width, self.width, body["projector"] == "mlp2"
        )

    def embed_image(self, images: Tensor) -> Tensor:
        return self.projector(self.vision(images))


class SmolVLM(Backbone):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.scale = body["scale"]
        self.projector = Linear(self.vision_config.width * self.scale**2, self.width, False)

    def embed_image(self, images: Tensor) -> Tensor:
        return self.projector(shuffle(self.vision(images), self.scale))


class Merger(nn.Module):
    """Squares of two by two patches [n p w] -> [n v c]: a norm over each patch, or where `whole`
    over all of a square, and two linear layers.
    """

    def __init__(self, vision: int, width: int, whole: bool) -> None:
        super().__init__()
        wide = vision * MERGE**2
        self.whole, self.norm = whole, Norm(wide if whole else vision, "ln", 1e-6)
        self.up, self.down = Linear(wide, wide), Linear(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(shuffle(x, MERGE)) if self.whole else shuffle(self.norm(x), MERGE)
        return self.down(F.gelu(self.up(x)))


class Mergers(nn.Module):
    """Of the tower's last layer, and of each that it gives beside it, one behind the other."""

    def __init__(self, vision: int, width: int, inner: int) -> None:
        super().__init__()
        self.last = Merger(vision, width, False)
        self.inner = nn.ModuleList([Merger(vision, width, True) for _ in range(inner)])

    def forward(self, layers: list[Tensor]) -> Tensor:
        inner = [merge(x) for merge, x in zip(self.inner, layers[:-1], strict=True)]
        return torch.cat([self.last(layers[-1]), *inner], -1)


class Qwen3VL(Backbone):
    """Its visual tokens have behind their own width what is added to the outputs of the decoder's
    first layers.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        vision, taps = body["vision"]["width"], body["vision"]["taps"]
        self.projector = Mergers(vision, self.width, len(taps))

    def _tower(self, body: dict[str, Any]) -> nn.Module:
        return QwenViT(QwenVisionConfig(**body))

    def side(self, size: int) -> int:
        return size // self.patch // MERGE

    def embed_image(self, images: Tensor) -> Tensor:
        return self.projector(self.vision(images))

    def encode(
        self,
        x: Tensor,
        mask: Tensor,
        positions: Tensor,
        num_queries: int,
        media: Media | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        first, *added = x.split(self.width, -1)

        def add(layer: int, x: Tensor) -> Tensor:
            return x + added[layer - 1] if 0 < layer <= len(added) else x

        x = self.decoder.layers(first, mask, positions, num_queries, add, cache)
        return self.decoder.norm(x)


class GatedCrossAttention(nn.Module):
    """x[n s c] += tanh(gate) * attention of its norm to the media; x += tanh(gate) * feed-forward.

    A token that sees no medium gets 0 from the attention.
    """

    def __init__(self, width: int, media: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.config, inner = config, config.heads * config.dim_head
        self.norm_attn, self.norm_mlp = Norm(width, "ln", 1e-5), Norm(width, "ln", 1e-5)
        self.q, self.o = Linear(width, inner, False), Linear(inner, width, False)
        self.k, self.v = Linear(media, inner, False), Linear(media, inner, False)
        self.up, self.down = Linear(width, 4 * width, False), Linear(4 * width, width, False)
        self.attn_gate, self.mlp_gate = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, media: Media) -> Tensor:
        q = scaled(self.q(self.norm_attn(x)), self.config.dim_head**-0.5)
        q, k, v = (
            y.unflatten(-1, (self.config.heads, -1))
            for y in (q, self.k(media.tokens), self.v(media.tokens))
        )
        sees_any = media.mask.any(2)[:, :, None, None]
        out = torch.where(sees_any, attend(q, k, v, media.mask), 0)  # n s heads dim_head
        x = x + torch.tanh(self.attn_gate.float()).to(x.dtype) * self.o(out.flatten(2))
        return x + torch.tanh(self.mlp_gate.float()).to(x.dtype) * self.down(
            F.gelu(self.up(self.norm_mlp(x)))
        )


class Flamingo(Backbone):
    cross_attends = True

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        config, self.every = ResamplerConfig(**body["resampler"]), body["every"]
        self.visual_width = self.vision_config.width
        self.perceiver = Resampler(self.visual_width, config)
        layers = body["depth"] // self.every
        self.gated = nn.ModuleList(
            [GatedCrossAttention(self.width, self.visual_width, config) for _ in range(layers)]
        )

    def embed_image(self, images: Tensor) -> Tensor:
        return self.perceiver(self.vision(images))

    def pre_layer_fn(self, media: Media | None) -> PreLayerFn | None:
        assert media is not None

        def cross_attend(layer: int, x: Tensor) -> Tensor:
            number, rest = divmod(layer + 1, self.every)
            return x if rest else self.gated[number - 1](x, media)

        return cross_attend


BACKBONES: dict[str, type[Backbone]] = {
    "paligemma": PaliGemma,
    "kosmos2": Kosmos2,
    "llava": Llava,
    "flamingo": Flamingo,
    "smolvlm": SmolVLM,
    "qwen3vl": Qwen3VL,
}
