"""The peer of `benchmark train`: the same policy in plain PyTorch, the way RoboVLMs trains it.

    python -m experiments.benchmarks.train_torch FOLDER

Hugging Face's PaliGemma with SDPA; images, words and a learned readout as `inputs_embeds`; nn.LSTM
and two MLPs, or the class's own logits; fused AdamW, clipped gradients, bfloat16 autocast on a GPU.
Reads what train_inputs.py wrote. It imports nothing of JAX: its memory is what training takes.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PaliGemmaForConditionalGeneration

from experiments.benchmarks import train_turns


class Head(nn.Module):
    """nn.LSTM over the window's readouts, then an MLP for the arm and one for the gripper."""

    def __init__(self, arrays: dict[str, Tensor], inputs: dict[str, Any]) -> None:
        super().__init__()
        hidden, layers = inputs["hidden"], inputs["lstm_layers"]
        width = arrays["head/layers/0/w_ih"].shape[0]
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        for i in range(layers):
            for theirs, ours in (("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "bias")):
                value = arrays[f"head/layers/{i}/{ours}"]
                getattr(self.lstm, f"{theirs}_l{i}").data.copy_(
                    value.T if value.ndim > 1 else value
                )
            # Ours has one bias where nn.LSTM has the sum of two: the other stays nothing.
            getattr(self.lstm, f"bias_hh_l{i}").data.zero_()
            getattr(self.lstm, f"bias_hh_l{i}").requires_grad_(False)
        self.arm, self.gripper = (
            mlp(arrays, f"head/outputs/{name}") for name in ("arm", "gripper")
        )

    def forward(self, readouts: Tensor) -> tuple[Tensor, Tensor]:
        """[b t c] -> arm values [b t k*(d-1)] and gripper logits [b t k], of the last dim."""
        features = self.lstm(readouts)[0]
        return torch.tanh(self.arm(features)), self.gripper(features)


def mlp(arrays: dict[str, Tensor], path: str) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    while f"{path}/layers/{len(layers) // 2}/kernel" in arrays:
        name = f"{path}/layers/{len(layers) // 2}"
        kernel = arrays[f"{name}/kernel"]
        linear = nn.Linear(*kernel.shape)
        linear.weight.data.copy_(kernel.T)
        linear.bias.data.copy_(arrays[f"{name}/bias"])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Policy(nn.Module):
    """Images and words -> loss."""

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        super().__init__()
        kind: Any = PaliGemmaForConditionalGeneration
        self.vlm = kind.from_pretrained(
            folder / "hub", dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        if inputs["remat"] != "none" and not inputs["keep"]:
            self.vlm.gradient_checkpointing_enable()
        arrays = load_file(folder / "rest.safetensors")
        self.readout = nn.Parameter(arrays["readout_embedding"])
        self.head = Head(arrays, inputs) if inputs["step"] == "action" else None
        self.inputs = inputs

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean over steps, as ours."""
        if self.head is None:
            return self._language(batch)
        hidden = self._encode(batch, None)[:, -1]
        window = hidden.float().reshape(len(batch["actions"]), -1, hidden.shape[-1])
        with torch.autocast(window.device.type, enabled=False):  # as ours: heads are float32
            arm, gripper = self.head(window)
        wanted, loss = batch["actions"], self.inputs["loss"]
        huber = F.huber_loss(arm.reshape(*wanted.shape[:-1], -1), wanted[..., :-1])
        cross = F.binary_cross_entropy_with_logits(gripper, wanted[..., -1])
        return loss["arm"] * huber + loss["gripper"] * cross

    def _language(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the action tokens among all action tokens, as ours."""
        ids = batch["ids"]
        hidden, (first, end) = self._encode(batch, ids[:, :-1]), self.inputs["token_range"]
        if self.inputs["peer"] == "informed":
            table = self.vlm.get_input_embeddings().weight[first:end]
            logits = hidden[:, -ids.shape[1] :] @ table.T.to(hidden.dtype)
        else:
            logits = self.vlm.lm_head(hidden)[:, -ids.shape[1] :, first:end]
        return F.cross_entropy(logits.float().flatten(0, 1), (ids - first).flatten().long())

    def _encode(self, batch: dict[str, Tensor], suffix: Tensor | None) -> Tensor:
        """Hidden states [f s c] of [images | prompt | readout | suffix]: images and prompt see each
        other, the rest what stands before it.
        """
        model, words, valid = self.vlm.model, self.vlm.get_input_embeddings(), batch["prompt_mask"]
        images = batch["images"].flatten(0, 1)
        pixels = (images.float() / 127.5 - 1).permute(0, 3, 1, 2)
        features = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
        frames = len(images) // len(valid)
        text = words(batch["prompt"]).repeat_interleave(frames, 0)
        valid = valid.repeat_interleave(frames, 0)
        readout = self.readout.expand(len(images), 1, -1).to(text.dtype)
        parts = [
            features.to(text.dtype),
            text,
            readout,
            *([] if suffix is None else [words(suffix)]),
        ]
        x = torch.cat(parts, 1)
        after = x.shape[1] - features.shape[1] - text.shape[1]
        real = F.pad(F.pad(valid, (features.shape[1], 0), value=True), (0, after), value=True)
        place = torch.arange(x.shape[1], device=x.device)
        order = (place - (x.shape[1] - after) + 1).clamp(min=0)
        seen = real[:, None] & (order[None, :] <= order[:, None])
        seen = seen | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        positions = (real.cumsum(1) - 1).clamp(min=0)
        out = model.language_model(
            inputs_embeds=x, attention_mask=seen[:, None], position_ids=positions, use_cache=False
        )
        hidden: Tensor = out.last_hidden_state
        return hidden


def main(folder: Path) -> None:
    """Trains as many steps as each line says."""
    inputs = json.loads((folder / "inputs.json").read_text())
    device, optim = torch.device(inputs["device"]), inputs["optim"]
    arrays = load_file(folder / "batches.safetensors")
    names = {name.partition("/")[2] for name in arrays}
    data = [{name: arrays[f"{i}/{name}"] for name in names} for i in range(inputs["batches"])]
    began = time.perf_counter()
    policy = Policy(folder, inputs).to(device).train()
    trained = [x for x in policy.parameters() if x.requires_grad]
    adam = torch.optim.AdamW(
        trained, lr=optim["lr"], betas=(optim["b1"], optim["b2"]), eps=optim["eps"],
        weight_decay=optim["weight_decay"], fused=True,
    )  # fmt: skip

    def train(numbers: Iterator[int]) -> list[float]:
        losses = []
        for i in numbers:
            batch = {name: value.to(device) for name, value in data[i % len(data)].items()}
            with torch.autocast(device.type, torch.bfloat16, inputs["dtype"] == "bfloat16"):
                loss = policy(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, optim["clip"])
            adam.step()
            adam.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def memory() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    ready = {"compile_s": time.perf_counter() - began, "device": str(device), "peak": None}
    if device.type == "cpu":
        rows, inner, columns = train_turns.PRODUCT
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        ready["peak"] = train_turns.product_rate(lambda: a @ b)
    train_turns.serve(train, memory, ready)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
