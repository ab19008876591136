"""RoboVLMs' policies, small, in torch: the reference that imported weights are compared with.

Written from reference/robovlms.md (1.2, 1.8, 2) and backbones.md (3): how its backbones are fed and
what its heads compute. Kosmos-2's and PaliGemma's towers are those of transformers. Parameter names
are RoboVLMs'.
"""

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

IMAGE, WIDTH, VOCAB, DIM = 32, 64, 1600, 7
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def kosmos(released: bool = False) -> Any:
    """A Kosmos-2 of the sizes of ours named tiny, or of the released ones."""
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    if released:
        return Kosmos2ForConditionalGeneration(Kosmos2Config())
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": IMAGE, "patch_size": 8}
    config = Kosmos2Config(
        text_config={
            "vocab_size": VOCAB,
            "embed_dim": WIDTH,
            "ffn_dim": 256,
            "layers": 2,
            "attention_heads": 4,
        },
        vision_config={"hidden_size": 64, "intermediate_size": 256, **sizes},
        latent_query_num=8,
    )
    return Kosmos2ForConditionalGeneration(config)


def paligemma() -> Any:
    """A PaliGemma of the sizes of ours named tiny."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    text = {
        "model_type": "gemma", "hidden_size": WIDTH, "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCAB,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": IMAGE, "patch_size": 8, "vision_use_head": False,
    }  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=WIDTH, hidden_size=WIDTH
    )
    config._attn_implementation = "eager"  # causal without token types, as transformers 4.44 was
    return PaliGemmaForConditionalGeneration(config)


class MLP(nn.Module):
    """The output stage of every head."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        sizes = (width, 1024, 512, 256, out)
        layers = [
            part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())
        ]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


class Head(nn.Module):
    """Readouts [b, t, n, c] -> arm [b, t, k, 6], gripper logits [b, t, k]."""

    def __init__(self, width: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.actions, self.gripper = MLP(width, chunk * (DIM - 1)), MLP(width, chunk)

    def forward(self, readouts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.features(readouts.flatten(2))
        return torch.tanh(self.actions(x)).unflatten(-1, (self.chunk, DIM - 1)), self.gripper(x)


class LSTM(Head):
    def __init__(self, width: int, hidden: int, latent: int, chunk: int, window: int) -> None:
        super().__init__(hidden * latent, chunk)
        self.rnn = nn.LSTM(width * latent, hidden * latent, 4, batch_first=True)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


class FC(Head):
    def __init__(self, width: int, hidden: int, latent: int, chunk: int, window: int) -> None:
        super().__init__(hidden * latent, chunk)
        inputs = width * latent
        self.mlp = nn.Sequential(
            nn.Linear(inputs, inputs // 2), nn.ReLU(), nn.Linear(inputs // 2, hidden * latent)
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs) * 0.1),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.c_attn, self.attn.c_proj = Conv1D(width, 3 * width), Conv1D(width, width)
        self.attn.register_buffer(
            "bias", torch.tril(torch.ones(64, 64, dtype=torch.uint8))[None, None]
        )
        self.attn.register_buffer("masked_bias", torch.tensor(-1e4))
        self.mlp.c_fc, self.mlp.c_proj = Conv1D(width, 4 * width), Conv1D(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v)
        )  # b heads t e
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        t = x.shape[1]
        scores = torch.where(self.attn.bias[:, :, :t, :t].bool(), scores, self.attn.masked_bias)
        x = x + self.attn.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(Head):
    def __init__(self, width: int, hidden: int, latent: int, chunk: int, window: int) -> None:
        super().__init__(hidden, chunk)
        self.fc = nn.Identity() if hidden == width else nn.Linear(width, hidden)
        self.gpt = nn.Module()
        self.gpt.wpe = nn.Embedding(window, hidden)
        self.gpt.h = nn.ModuleList([Block(hidden) for _ in range(8)])
        self.gpt.ln_f = nn.LayerNorm(hidden)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        x = x + self.gpt.wpe.weight[None, : x.shape[1]]
        for block in self.gpt.h:
            x = block(x)
        return self.gpt.ln_f(x)


HEADS = {"LSTMDecoder": LSTM, "FCDecoder": FC, "GPTDecoder": GPT}


class Policy(nn.Module):
    """A RoboVLMs policy: one pass of the backbone per frame, or with history_type "pre" over all
    frames in a row, and a head over the window.
    """

    def __init__(
        self, backbone: str, head: Head, latent: int, history: str = "post", released: bool = False
    ) -> None:
        super().__init__()
        self.kind, self.latent, self.history = backbone, latent, history
        self.backbone = kosmos(released) if backbone == "kosmos" else paligemma()
        self.action_token = nn.Parameter(torch.zeros(self.text().embed_tokens.weight.shape[1]))
        self.act_head = head

    def jitter(self, seed: int) -> "Policy":
        """Moves every parameter, because default initialisation hides bugs."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.08)
        return self.eval()

    def features(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [n, h, w, 3] -> what stands in the sequence, [n, v, c]."""
        x = torch.tensor(images.transpose(0, 3, 1, 2) / 255.0, dtype=torch.float32)
        if self.kind == "kosmos":
            mean, std = (torch.tensor(v)[None, :, None, None] for v in (CLIP_MEAN, CLIP_STD))
            tower = self.backbone.vision_model.model
            tokens = F.normalize(
                tower.post_layernorm(tower((x - mean) / std).last_hidden_state), dim=-1
            )
            return self.backbone.image_to_text_projection(tokens)[0]
        tokens = self.backbone.model.vision_tower(x * 2 - 1).last_hidden_state
        return self.backbone.model.multi_modal_projector(tokens)

    def readouts(self, cameras: tuple[np.ndarray, ...], ids: np.ndarray) -> torch.Tensor:
        """Frames [t, h, w, 3] of each camera (static, wrist) and one prompt -> hidden states at the
        action tokens.
        """
        t, scale = cameras[0].shape[0], WIDTH**0.5
        table = self.text().embed_tokens.weight
        text = table[torch.tensor(ids)][None].expand(t, -1, -1)
        images = torch.cat(
            [self.features(frames) for frames in cameras[::-1]], dim=1
        )  # wrist, then static
        act = self.action_token[None, None].expand(t, self.latent, -1)
        if self.kind == "paligemma":
            # transformers 4.44 multiplied everything by sqrt(h), after RoboVLMs had divided the
            # images by it.
            text, act = text * scale, act * scale
        x = torch.cat([text[:, :1], images, text[:, 1:-1], act, text[:, -1:]], dim=1)
        shape = x.shape
        if self.history == "pre":
            x = x.flatten(0, 1)[None]
        hidden = self.text()(
            inputs_embeds=x, attention_mask=torch.ones(x.shape[:2])
        ).last_hidden_state.view(shape)
        return hidden[:, -1 - self.latent : -1]

    def text(self) -> Any:
        """The decoder."""
        return (
            self.backbone.text_model.model
            if self.kind == "kosmos"
            else self.backbone.model.language_model
        )

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """The state dict under the names that RoboVLMs saved, with transformers of its time."""
        out = {}
        for name, tensor in self.state_dict().items():
            for new, old in (
                ("backbone.model.language_model.", "backbone.language_model.model."),
                ("backbone.model.vision_tower.", "backbone.vision_tower.vision_model."),
                ("backbone.model.multi_modal_projector.", "backbone.multi_modal_projector."),
                ("backbone.lm_head.", "backbone.language_model.lm_head."),
            ):
                if name.startswith(new):
                    name = old + name.removeprefix(new)
            out[f"model.{name}"] = tensor
        return out
