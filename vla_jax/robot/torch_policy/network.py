"""The network in torch: a new frame and the state of the episode in, the chunk of normalised actions and the state out.

    Network.vision(images)            uint8 [cameras h w 3] -> visual tokens [cameras v w]
    Network.frame(visual, prompt ...) -> Frame: the tokens of one frame, as vla_jax/sequence.py lays them out
    Network.step(state, frame, noise) -> (state, Step): one pass of the backbone over the new frame (history "head",
                                         "one_step"), or one over the window's embedded tokens ("interleaved")

State is explicit, so that a server can keep many and a runtime without Python can pass it: with history "head" the
readouts [t n c] of the window, with "interleaved" its Frames one behind the other; None before the first frame. The
head reads the window again at each step from a zero state, as it was trained.

Axes: f frames, t window step, s tokens of a frame, l text, v visual tokens of an image, m of a frame, n readouts,
c width, w visual width, k chunk step, d action dim, q action tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backbones import BACKBONES, Media
from .heads import HEADS, DiscreteHead
from .layers import Linear, Resampler, ResamplerConfig, scaled

LAYOUTS = ("prefix", "robovlms")
HISTORIES = ("head", "interleaved", "one_step")


class Frame(NamedTuple):
    """Tokens [f s c] of frames, which of them are real, and the same of visual tokens beside the sequence."""

    tokens: Tensor
    valid: Tensor
    media: Tensor | None
    media_valid: Tensor | None


State = Tensor | Frame | None


class Step(NamedTuple):
    """readout [n c] of the new frame; action [k d], normalised; probability [q] of each action token (discrete)."""

    readout: Tensor
    action: Tensor
    probability: Tensor | None


class StateToken(nn.Module):
    """The robot's normalised state [p] as one token [c]; a gripper above 0 is open."""

    def __init__(self, width: int, dims: int, gripper: int | None) -> None:
        super().__init__()
        self.dims, self.gripper, self.rest = dims, gripper, [i for i in range(dims) if i != gripper]
        self.arm = Linear(len(self.rest), width)
        self.embedding = None if gripper is None else nn.Parameter(torch.empty(2, width))
        self.output = Linear(width if gripper is None else 2 * width, width)

    def forward(self, state: Tensor) -> Tensor:
        arm = self.arm(state[self.rest])
        if self.embedding is None:
            return self.output(arm)
        return self.output(torch.cat([arm, self.embedding[(state[self.gripper] > 0).long()].to(arm.dtype)]))


class ActionToken(nn.Module):
    """A normalised action [d] as one token [c]."""

    def __init__(self, width: int, dims: int, binary: list[int]) -> None:
        super().__init__()
        half, self.dims, self.binary = width // 2, dims, binary
        self.rest = [i for i in range(dims) if i not in binary]
        self.arm, self.middle, self.output = Linear(len(self.rest), half), Linear(half, half), Linear(half, width)
        self.gripper = Linear(len(binary), half) if binary else None

    def forward(self, action: Tensor) -> Tensor:
        x = self.arm(action[self.rest])
        x = x if self.gripper is None else x + self.gripper(action[self.binary])
        return self.output(self.middle(x))


class Network(nn.Module):
    """`body` is "network" of config.json. Parameters have the names of the JAX model, "." for "/"."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        sequence, head = body["sequence"], body["head"]
        for what, name, known in (
            ("backbone", body["backbone"]["kind"], tuple(BACKBONES)),
            ("head", head["kind"], tuple(HEADS)),
            ("layout", sequence["layout"], LAYOUTS),
            ("history", sequence["history"], HISTORIES),
        ):
            if name not in known:
                raise ValueError(f"config.json: {what}: expected one of {', '.join(known)}, got {name!r}")
        self.backbone = BACKBONES[body["backbone"]["kind"]](body["backbone"])
        width = self.backbone.width
        self.head = HEADS[head["kind"]](width, head)
        self.layout, self.interleaved = sequence["layout"], sequence["history"] == "interleaved"
        self.window, self.readouts = sequence["window"], sequence["readouts"]
        self.readout_embedding = nn.Parameter(torch.empty(self.readouts, width))
        resampler = sequence["resampler"]
        visual = self.backbone.visual_width
        self.resampler = Resampler(visual, ResamplerConfig(**resampler)) if resampler else None
        state, past = sequence["state"], sequence["past"]
        self.state = StateToken(width, state["dims"], state["gripper"]) if state else None
        self.past = ActionToken(width, head["action_dim"], past["binary"]) if past else None

    # ------------------------------------------------------------------------------------------------------ the frame

    def vision(self, images: Tensor) -> Tensor:
        """uint8 [cameras h w 3] in the config's order -> [cameras v w]."""
        visual = self.backbone.embed_image(images)
        return visual if self.resampler is None else self.resampler(visual)

    def frame(self, visual: Tensor, prompt: tuple[Tensor, Tensor], state: Tensor | None, past: Tensor | None) -> Frame:
        """The tokens of one frame. `prompt` is ids [l] padded on the right and their mask [l]; `state` [p] and `past`
        [d] are normalised; None is an unknown one.
        """
        ids, known = prompt
        words = self.backbone.embed_text(ids[None])  # 1 l c
        yes = known.new_ones(1, 1)
        media = (visual if self.layout == "prefix" else visual.flip(0)).flatten(0, 1)[None]  # 1 m w
        seen = yes.expand(1, media.shape[1])
        images = [] if self.backbone.cross_attends else [(media, seen)]
        numbers = []
        for token, value in ((self.state, state), (self.past, past)):
            if token is not None:
                given = words.new_zeros(token.dims, dtype=torch.float32) if value is None else value
                numbers.append((self._learned(token(given))[None, None], yes if value is not None else ~yes))
        if self.layout == "prefix":
            parts = [*images, (words, known[None]), *numbers]
        else:  # the prompt's last token stands where nothing sees it: it is left out
            inner = known[1:] & (torch.arange(1, len(ids), device=ids.device) < known.sum() - 1)
            parts = [(words[:, :1], known[None, :1]), *images, (words[:, 1:], inner[None]), *numbers]
        parts.append((self._learned(self.readout_embedding)[None], yes.expand(1, self.readouts)))
        tokens = torch.cat([part.to(parts[0][0].dtype) for part, _ in parts], 1)
        valid = torch.cat([mask for _, mask in parts], 1)
        cross = self.backbone.cross_attends
        return Frame(tokens, valid, media if cross else None, seen if cross else None)

    def _learned(self, tokens: Tensor) -> Tensor:
        """Learned tokens on the scale on which the layout has them."""
        scale = self.backbone.text_scale if self.layout == "robovlms" else 1.0
        return tokens if scale == 1.0 else scaled(tokens, scale)

    # ------------------------------------------------------------------------------------------------------- the step

    def step(self, state: State, frame: Frame, noise: Tensor | None = None) -> tuple[State, Step]:
        """The new state and what comes out at the new frame."""
        if isinstance(self.head, DiscreteHead):
            frames = self._in_window(state, frame) if self.interleaved else frame
            readout, action, probability = self._tokens(frames, self.head, noise)
            return (frames if self.interleaved else None), Step(readout, action, probability)
        if self.interleaved:
            frames = self._in_window(state, frame)
            kept: State = frames
            window = self._encode(frames)  # t n c
        else:
            new = self._encode(frame)
            assert not isinstance(state, Frame)
            # The first frame stands for those before the episode began.
            kept = window = new.repeat(self.window, 1, 1) if state is None else torch.cat([state[1:], new])
        return kept, Step(window[-1], self.head.act(window.flatten(1), noise), None)

    def _in_window(self, state: State, frame: Frame) -> Frame:
        """The window's frames with the new one at the end; those before the episode began are not valid."""
        if state is None:
            media = None if frame.media_valid is None else torch.zeros_like(frame.media_valid)
            unseen = frame._replace(valid=torch.zeros_like(frame.valid), media_valid=media)
            return _joined([unseen] * (self.window - 1) + [frame])
        assert isinstance(state, Frame)
        return _joined([Frame(*(x if x is None else x[1:] for x in state)), frame])  # type: ignore[arg-type]

    def _encode(self, frames: Frame) -> Tensor:
        """float32 hidden states [f n c] at the readouts of f frames in a row."""
        f, s = frames.valid.shape
        mask, places, media = self._sight(frames)
        x = frames.tokens.reshape(1, f * s, -1)
        if f == 1:
            return self.backbone.encode(x, mask, places, self.readouts, media).float()
        hidden = self.backbone.encode(x, mask, places, f * s, media).float()
        return hidden.view(f, s, -1)[:, s - self.readouts :]

    def _sight(self, frames: Frame) -> tuple[Tensor, Tensor, Media | None]:
        """Who sees whom [1 f*s f*s], the places [1 f*s], and the media: see vla_jax/sequence.py."""
        f, s = frames.valid.shape
        device, n = frames.valid.device, self.readouts
        token = torch.arange(s, device=device)
        order = (token - (s - n) + 1).clamp(min=0) if self.layout == "prefix" else token
        private = n if self.layout == "prefix" else 0  # tokens at a frame's end that later frames do not see
        number, place = torch.arange(f, device=device).repeat_interleave(s), token.repeat(f)
        same, earlier = number[:, None] == number[None], number[:, None] > number[None]
        seen = same & (order[place][None] <= order[place][:, None]) | earlier & (place < s - private)[None]
        mask = (seen & frames.valid.reshape(1, -1) | torch.eye(f * s, dtype=torch.bool, device=device))[None]
        inside, counted = frames.valid.cumsum(1), frames.valid[:, : s - private].sum(1)
        start = counted.cumsum(0) - counted
        places = (start[:, None] + inside - 1).clamp(min=0).view(1, f * s)
        if frames.media is None or frames.media_valid is None:
            return mask, places, None
        whose = torch.arange(f, device=device).repeat_interleave(frames.media.shape[1])
        visible = (number[:, None] >= whose[None]) & frames.media_valid.reshape(1, -1)
        return mask, places, Media(frames.media.flatten(0, 1)[None], visible[None])

    def _tokens(self, frames: Frame, head: DiscreteHead, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The newest frame's readout, its decoded actions, and the probability of each token."""
        mask, places, media = self._sight(frames)
        x = frames.tokens.flatten(0, 1)[None]
        hidden, cache = self.backbone.decode(x, mask, places, None, media)
        readout, hidden = hidden[0, -self.readouts :].float(), hidden[:, -1:]
        seen, last = mask[:, -1:], None if media is None else media._replace(mask=media.mask[:, -1:])
        chosen, scores = [], []
        for i in range(head.tokens):
            logits = self.backbone.logits(hidden, head.rows)[:, 0]
            chosen.append(head.choose(logits, None if noise is None else noise[i]))
            scores.append(logits[0])
            if i + 1 < head.tokens:
                seen = torch.cat([seen, seen.new_ones(1, 1, 1)], 2)
                token = self.backbone.embed_text(chosen[-1][None])
                hidden, cache = self.backbone.decode(token, seen, places[:, -1:] + 1 + i, cache, last)
        ids, table = torch.cat(chosen), torch.stack(scores)
        probability = table.softmax(-1).gather(1, (ids - head.rows[0])[:, None])[:, 0]
        return readout, head.actions(ids, table), probability


def _joined(frames: list[Frame]) -> Frame:
    """Frames one behind the other."""
    parts = zip(*frames, strict=True)
    return Frame(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]
