"""The network in torch: new frames and the states of their episodes in, chunks of normalised
actions and states out.

    Network.vision(images)              uint8 [b cameras h w 3] -> visual tokens [b cameras v w]
    Network.frame(visual, inputs)       -> Frame: the tokens of one frame, as
                                        vla_jax/models/sequence.py lays them out
    Network.initial(frame)              -> State: zeros, to stand before an episode's first frame
    Network.step(state, frame, inputs)  -> (State, Step): one pass of the backbone over the new
                                        frame (history "head",
                                           "one_step"), or one over the window's embedded tokens
                                           ("interleaved")

All shapes are fixed, and so a server can batch episodes and a runtime without Python can carry the
state: with history "head" the readouts [b t n c] of the window, with "interleaved" its frames; None
for a head that looks at one frame. The head reads the window again at each step from a zero state,
as it was trained.

Axes: b episodes, f frames, t window step, s tokens of a frame, l text, v visual tokens of an image,
m of a frame, n readouts, c width, w visual width, k chunk step, d action dim, p proprio, q action
tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backbones import BACKBONES, Media
from .heads import HEADS, DiscreteHead
from .layers import Cache, Linear, Resampler, ResamplerConfig, scaled

LAYOUTS = ("prefix", "robovlms")
HISTORIES = ("head", "interleaved", "one_step")


class Inputs(NamedTuple):
    """What comes in with a new frame of each of b episodes.

    images uint8 [b cameras h w 3]; prompt ids [b l] padded on the right, and their mask; first [b]:
    the episode begins. proprio [b p] and past, the action before [b d], normalised, and noise, for
    networks that take them; at an episode's first frame there is no action before, whatever stands
    there.
    """

    images: Tensor
    prompt: Tensor
    prompt_mask: Tensor
    first: Tensor
    proprio: Tensor | None
    past: Tensor | None
    noise: Tensor | None


class Frame(NamedTuple):
    """Tokens [b f s c] of frames and which are real, and the same of visual tokens beside the
    sequence [b f m w].
    """

    tokens: Tensor
    valid: Tensor
    media: Tensor | None
    media_valid: Tensor | None


State = Tensor | Frame | None


class Step(NamedTuple):
    """readout [b n c] of the new frame; action [b k d], normalised; probability [b q] of each token
    (discrete).
    """

    readout: Tensor
    action: Tensor
    probability: Tensor | None


class Decoded(NamedTuple):
    """Action tokens so far: their number [1], ids [b q] and scores [b q bins], zeros after them,
    and what is cached.
    """

    number: Tensor
    ids: Tensor
    scores: Tensor
    cache: Cache


def repeated(further: Callable[[Decoded], Decoded], done: Decoded, times: int) -> Decoded:
    """further(further(... done))."""
    for _ in range(times):
        done = further(done)
    return done


class StateToken(nn.Module):
    """The robot's normalised state [b p] as one token [b c]; a gripper above 0 is open."""

    def __init__(self, width: int, dims: int, gripper: int | None) -> None:
        super().__init__()
        self.dims, self.gripper, self.rest = dims, gripper, [i for i in range(dims) if i != gripper]
        self.arm = Linear(len(self.rest), width)
        self.embedding = None if gripper is None else nn.Parameter(torch.empty(2, width))
        self.output = Linear(width if gripper is None else 2 * width, width)

    def forward(self, state: Tensor) -> Tensor:
        arm = self.arm(state[:, self.rest])
        if self.embedding is None:
            return self.output(arm)
        return self.output(
            torch.cat([arm, self.embedding[(state[:, self.gripper] > 0).long()].to(arm.dtype)], -1)
        )


class ActionToken(nn.Module):
    """A normalised action [b d] as one token [b c]."""

    def __init__(self, width: int, dims: int, binary: list[int]) -> None:
        super().__init__()
        half, self.dims, self.binary = width // 2, dims, binary
        self.rest = [i for i in range(dims) if i not in binary]
        self.arm, self.middle, self.output = (
            Linear(len(self.rest), half),
            Linear(half, half),
            Linear(half, width),
        )
        self.gripper = Linear(len(binary), half) if binary else None

    def forward(self, action: Tensor) -> Tensor:
        x = self.arm(action[:, self.rest])
        x = x if self.gripper is None else x + self.gripper(action[:, self.binary])
        return self.output(self.middle(x))


class Network(nn.Module):
    """`body` is "network" of config.json. Parameters have the names of the JAX model, "."
    for "/".
    """

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
                raise ValueError(
                    f"config.json: {what}: expected one of {', '.join(known)}, got {name!r}"
                )
        self.backbone = BACKBONES[body["backbone"]["kind"]](body["backbone"])
        width = self.backbone.width
        self.head = HEADS[head["kind"]](width, head)
        self.layout, self.interleaved = sequence["layout"], sequence["history"] == "interleaved"
        self.window, self.readouts = sequence["window"], sequence["readouts"]
        self.readout_embedding = nn.Parameter(torch.empty(self.readouts, width))
        resampler = sequence["resampler"]
        visual = self.backbone.visual_width
        # of a function of what has been decoded; programs made of the network have their own loop
        self.repeat = repeated
        self.resampler = Resampler(visual, ResamplerConfig(**resampler)) if resampler else None
        state, past = sequence["state"], sequence["past"]
        self.state = StateToken(width, state["dims"], state["gripper"]) if state else None
        self.past = ActionToken(width, head["action_dim"], past["binary"]) if past else None

    # ------------------------------------------------------------------------------------ the frame

    def vision(self, images: Tensor) -> Tensor:
        """uint8 [b cameras h w 3], cameras in the config's order -> [b cameras v w]."""
        visual = self.backbone.embed_image(images.flatten(0, 1))
        visual = visual if self.resampler is None else self.resampler(visual)
        return visual.unflatten(0, images.shape[:2])

    def frame(self, visual: Tensor, inputs: Inputs) -> Frame:
        """The tokens of one frame [b 1 s c]."""
        known, first = inputs.prompt_mask, inputs.first[:, None]
        words = self.backbone.embed_text(inputs.prompt)  # b l c
        yes = torch.ones_like(first)
        media = (visual if self.layout == "prefix" else visual.flip(1)).flatten(1, 2)  # b m w
        seen = yes.expand(-1, media.shape[1])
        images = [] if self.backbone.cross_attends else [(media, seen)]
        numbers = []
        for token, value, there in (
            (self.state, inputs.proprio, yes),
            (self.past, inputs.past, ~first),
        ):
            if token is not None:
                assert value is not None
                numbers.append((self._learned(token(torch.where(there, value, 0)))[:, None], there))
        if self.layout == "prefix":
            parts = [*images, (words, known), *numbers]
        else:  # the prompt's last token stands where nothing sees it: it is left out
            place = torch.arange(1, known.shape[1], device=known.device)
            inner = known[:, 1:] & (place < known.sum(1, keepdim=True) - 1)
            parts = [(words[:, :1], known[:, :1]), *images, (words[:, 1:], inner), *numbers]
        readouts = self._learned(self.readout_embedding).expand(len(words), -1, -1)
        parts.append((readouts, yes.expand(-1, self.readouts)))
        tokens = torch.cat([part.to(parts[0][0].dtype) for part, _ in parts], 1)[:, None]
        valid = torch.cat([mask for _, mask in parts], 1)[:, None]
        cross = self.backbone.cross_attends
        return Frame(
            tokens, valid, media[:, None] if cross else None, seen[:, None] if cross else None
        )

    def _learned(self, tokens: Tensor) -> Tensor:
        """Learned tokens on the scale on which the layout has them."""
        scale = self.backbone.text_scale if self.layout == "robovlms" else 1.0
        return tokens if scale == 1.0 else scaled(tokens, scale)

    # ------------------------------------------------------------------------------------- the step

    def initial(self, frame: Frame) -> State:
        """What to pass to `step` with an episode's first frame, which does not look at its
        numbers.
        """
        b = len(frame.tokens)
        if self.interleaved:
            fields: Any = (
                None if x is None else x.new_zeros(b, self.window, *x.shape[2:]) for x in frame
            )
            return Frame(*fields)
        if isinstance(self.head, DiscreteHead):
            return None
        return torch.zeros(
            b, self.window, self.readouts, self.backbone.width, device=frame.tokens.device
        )

    def step(self, state: State, frame: Frame, inputs: Inputs) -> tuple[State, Step]:
        """The new state and what comes out at the new frame."""
        if self.interleaved:
            assert isinstance(state, Frame)
            state = frame = self._in_window(state, frame, inputs.first)
        if isinstance(self.head, DiscreteHead):
            readout, action, probability = self._tokens(frame, self.head, inputs.noise)
            return state, Step(readout, action, probability)
        window = self._encode(frame)  # b f n c
        if not self.interleaved:
            assert isinstance(state, Tensor)
            # The first frame stands for those before the episode began.
            state = window = torch.where(
                inputs.first[:, None, None, None], window, torch.cat([state[:, 1:], window], 1)
            )
        return state, Step(window[:, -1], self.head.act(window.flatten(2), inputs.noise), None)

    def _in_window(self, state: Frame, frame: Frame, first: Tensor) -> Frame:
        """The window's frames with the new one at the end; those before the episode began are not
        valid.
        """
        parts: list[Tensor | None] = []
        for old, new in zip(state, frame, strict=True):
            if old is None or new is None:
                parts.append(None)
                continue
            begins, before = first.view(-1, *[1] * (old.ndim - 1)), old[:, 1:]
            # Masks without torch.where, which onnxruntime does not know for bool.
            before = (
                before & ~begins if old.dtype == torch.bool else torch.where(begins, new, before)
            )
            parts.append(torch.cat([before, new], 1))
        return Frame(*parts)  # type: ignore[arg-type]

    def _encode(self, frames: Frame) -> Tensor:
        """float32 hidden states [b f n c] at the readouts of f frames in a row."""
        b, f, s = frames.valid.shape
        mask, places, media = self.attention_mask(frames)
        rows = self.readouts if f == 1 else f * s
        hidden = self.backbone.encode(
            frames.tokens.flatten(1, 2), mask, places, rows, media
        ).float()
        return hidden.view(b, f, -1, hidden.shape[-1])[:, :, -self.readouts :]

    def attention_mask(self, frames: Frame) -> tuple[Tensor, Tensor, Media | None]:
        """Who sees whom [b f*s f*s], the places [b f*s], and the media: see
        vla_jax/models/sequence.py.
        """
        f, s = frames.valid.shape[1:]
        device, n = frames.valid.device, self.readouts
        token = torch.arange(s, device=device)
        order = (token - (s - n) + 1).clamp(min=0) if self.layout == "prefix" else token
        private = (
            n if self.layout == "prefix" else 0
        )  # tokens at a frame's end that later frames do not see
        number, place = torch.arange(f, device=device).repeat_interleave(s), token.repeat(f)
        same, earlier = number[:, None] == number[None], number[:, None] > number[None]
        seen = (
            same & (order[place][None] <= order[place][:, None])
            | earlier & (place < s - private)[None]
        )
        own = torch.eye(f * s, dtype=torch.bool, device=device)
        mask = seen[None] & frames.valid.flatten(1)[:, None] | own[None]
        inside, counted = frames.valid.cumsum(2), frames.valid[:, :, : s - private].sum(2)
        start = counted.cumsum(1) - counted
        places = (start[:, :, None] + inside - 1).clamp(min=0).flatten(1)
        if frames.media is None or frames.media_valid is None:
            return mask, places, None
        whose = torch.arange(f, device=device).repeat_interleave(frames.media.shape[2])
        visible = (number[:, None] >= whose[None])[None] & frames.media_valid.flatten(1)[:, None]
        return mask, places, Media(frames.media.flatten(1, 2), visible)

    def _tokens(
        self, frames: Frame, head: DiscreteHead, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The newest frame's readout, its decoded actions, and the probability of each token."""
        mask, places, media = self.attention_mask(frames)
        x = frames.tokens.flatten(1, 2)
        b, s = places.shape
        room = s + head.tokens - 1
        cache = self.backbone.decoder.layers.cache(x, room)
        wide = torch.cat([mask, mask.new_zeros(b, s, room - s)], 2)
        hidden = self.backbone.encode(x, wide, places, self.readouts, media, cache)
        readout, seen, place = hidden.float(), wide[:, -1:], places[:, -1:]
        last = None if media is None else media._replace(mask=media.mask[:, -1:])
        slots = torch.arange(room, device=x.device)

        def another(done: Decoded, hidden: Tensor) -> Decoded:
            logits = self.backbone.logits(hidden, head.rows)
            drawn = None if noise is None else noise.index_select(1, done.number)[:, 0]
            ids = done.ids.index_copy(1, done.number, head.choose(logits[:, 0], drawn)[:, None])
            return Decoded(
                done.number + 1, ids, done.scores.index_copy(1, done.number, logits), done.cache
            )

        def further(done: Decoded) -> Decoded:
            now = seen | (slots >= s) & (slots < s + done.number)
            last_id = done.ids.index_select(1, done.number - 1)[:, 0]
            return another(done, self._after(last_id, now, place + done.number, last, done.cache))

        ids, scores = places.new_zeros(b, head.tokens), readout.new_zeros(b, head.tokens, head.bins)
        done = another(Decoded(places.new_zeros(1), ids, scores, cache), hidden[:, -1:])
        done = self.repeat(further, done, head.tokens - 1)
        probability = done.scores.softmax(-1).gather(2, (done.ids - head.rows[0])[..., None])[
            ..., 0
        ]
        return readout, head.actions(done.ids, done.scores), probability

    def _after(
        self, ids: Tensor, seen: Tensor, place: Tensor, media: Media | None, cache: Cache
    ) -> Tensor:
        """The hidden state [b 1 c] at a token [b] that follows those in the cache."""
        return self.backbone.encode(
            self.backbone.embed_text(ids[:, None]), seen, place, 1, media, cache
        )


def rows(state: State, b: int) -> list[State]:
    """The states of b episodes, one by one."""
    if isinstance(state, Frame):
        parts: list[Any] = [[None] * b if x is None else x.split(1) for x in state]
        return [Frame(*part) for part in zip(*parts, strict=True)]
    return [None] * b if state is None else list(state.split(1))


def together(states: list[State]) -> State:
    """The states of single episodes as one of all of them."""
    parts: Any = states
    if isinstance(states[0], Frame):
        fields: Any = (
            None if field[0] is None else torch.cat(field) for field in zip(*parts, strict=True)
        )
        return Frame(*fields)
    return None if states[0] is None else torch.cat(parts)
