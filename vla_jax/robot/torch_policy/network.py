"""The network in torch: new frames and the states of their episodes in, chunks of normalised
actions and states out.

    Network.vision(images)              uint8 [b cameras h w 3] -> visual tokens [b cameras v w]
    Network.frame(visual, inputs)       -> Frame: the tokens of one frame, laid out as in
                                           vla_jax/models/sequence.py
    Network.initial(frame)              -> State: zeros, to stand before an episode's first frame
    Network.step(state, frame, inputs)  -> (State, Step): one pass of the backbone over the new
                                           frame (history "head", "one_step"), or over the tokens
                                           of the window's frames ("interleaved")

All shapes are fixed, and so a server can batch episodes and a runtime without Python can carry the
state: with history "head" the readouts [b t n c] of the window, with "interleaved" its frames; None
for a head that looks at one frame. The head reads the window again at each step from a zero state,
as it was trained.

Axes: b episodes, f frames of a pass, t window step, s tokens of a frame, l text, v visual tokens of
an image, m visual tokens of a frame, n readouts, c width, w width of visual tokens, k chunk step, d
action dim, p proprio, q action tokens; h w pixels of an image.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attention import Cache
from .backbones import BACKBONES, Media
from .heads import HEADS, DiscreteHead
from .layers import Linear, scaled
from .vision import Resampler, ResamplerConfig

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
    """Tokens [b f s c] of frames, and valid [b f s]: which are real, not padding. The same of
    visual tokens beside the sequence, [b f m w] and [b f m], for backbones that take them there.
    """

    tokens: Tensor
    valid: Tensor
    media: Tensor | None
    media_valid: Tensor | None


State = Tensor | Frame | None  # see the top of this file


class Step(NamedTuple):
    """readout [b n c] of the new frame; action [b k d], normalised; probability [b q] of each token
    (discrete).
    """

    readout: Tensor
    action: Tensor
    probability: Tensor | None


class Decoded(NamedTuple):
    """Action tokens so far: their count [1], ids [b q] and the logits [b q bins] each was chosen
    by, zeros after them, and the cache of all tokens.
    """

    num_tokens: Tensor
    ids: Tensor
    logits: Tensor
    cache: Cache


def repeated(decode_next: Callable[[Decoded], Decoded], done: Decoded, times: int) -> Decoded:
    """`decode_next` applied `times` times, to `done` first."""
    for _ in range(times):
        done = decode_next(done)
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
        gripper = self.embedding[(state[:, self.gripper] > 0).long()]  # b c
        return self.output(torch.cat([arm, gripper.to(arm.dtype)], -1))


class ActionToken(nn.Module):
    """A normalised action [b d] as one token [b c]."""

    def __init__(self, width: int, dims: int, binary: list[int]) -> None:
        super().__init__()
        half, self.dims, self.binary = width // 2, dims, binary
        self.rest = [i for i in range(dims) if i not in binary]
        self.arm, self.middle = Linear(len(self.rest), half), Linear(half, half)
        self.output = Linear(half, width)
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
        # How the steps of decoding are repeated: an exported program has a loop of its own.
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
        """Visual tokens [b cameras v w] -> the tokens of one frame [b 1 s c]."""
        prompt_valid, first = inputs.prompt_mask, inputs.first[:, None]
        words = self.backbone.embed_text(inputs.prompt)  # b l c
        present = torch.ones_like(first)  # b 1
        media = (visual if self.layout == "prefix" else visual.flip(1)).flatten(1, 2)  # b m w
        media_valid = present.expand(-1, media.shape[1])
        images = [] if self.backbone.cross_attends else [(media, media_valid)]
        numbers = []
        for token, value, valid in (
            (self.state, inputs.proprio, present),
            (self.past, inputs.past, ~first),
        ):
            if token is not None:
                assert value is not None
                embedded = token(torch.where(valid, value, 0))  # b c
                numbers.append((self._scaled_as_words(embedded)[:, None], valid))
        if self.layout == "prefix":
            parts = [*images, (words, prompt_valid), *numbers]
        else:  # the prompt's last token stands where nothing sees it: it is left out
            index = torch.arange(1, prompt_valid.shape[1], device=prompt_valid.device)
            inner = prompt_valid[:, 1:] & (index < prompt_valid.sum(1, keepdim=True) - 1)
            begin = (words[:, :1], prompt_valid[:, :1])
            parts = [begin, *images, (words[:, 1:], inner), *numbers]
        readouts = self._scaled_as_words(self.readout_embedding).expand(len(words), -1, -1)
        parts.append((readouts, present.expand(-1, self.readouts)))
        tokens = torch.cat([part.to(parts[0][0].dtype) for part, _ in parts], 1)[:, None]
        valid = torch.cat([mask for _, mask in parts], 1)[:, None]
        if not self.backbone.cross_attends:
            return Frame(tokens, valid, None, None)
        return Frame(tokens, valid, media[:, None], media_valid[:, None])

    def _scaled_as_words(self, tokens: Tensor) -> Tensor:
        """Learned tokens [... c], which the layout "robovlms" scales as it does words."""
        scale = self.backbone.text_scale if self.layout == "robovlms" else 1.0
        return tokens if scale == 1.0 else scaled(tokens, scale)

    # ------------------------------------------------------------------------------------- the step

    def initial(self, frame: Frame) -> State:
        """What to pass to `step` with an episode's first frame. `step` does not look at its numbers
        then.
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
            readout, action, probability = self._decode(frame, self.head, inputs.noise)
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
            begins, earlier = first.view(-1, *[1] * (old.ndim - 1)), old[:, 1:]
            if old.dtype == torch.bool:  # onnxruntime has no torch.where for bool
                earlier = earlier & ~begins
            else:
                earlier = torch.where(begins, new, earlier)
            parts.append(torch.cat([earlier, new], 1))
        return Frame(*parts)  # type: ignore[arg-type]

    def _encode(self, frames: Frame) -> Tensor:
        """float32 hidden states [b f n c] at the readouts of f frames in a row."""
        b, f, s = frames.valid.shape
        mask, positions, media = self.attention_mask(frames)
        x, num_queries = frames.tokens.flatten(1, 2), self.readouts if f == 1 else f * s
        hidden = self.backbone.encode(x, mask, positions, num_queries, media).float()
        return hidden.view(b, f, -1, hidden.shape[-1])[:, :, -self.readouts :]

    def attention_mask(self, frames: Frame) -> tuple[Tensor, Tensor, Media | None]:
        """Which token sees which [b f*s f*s], their positions [b f*s], and the media: see
        vla_jax/models/sequence.py.
        """
        f, s = frames.valid.shape[1:]
        device, n, prefix = frames.valid.device, self.readouts, self.layout == "prefix"
        num_unshared = n if prefix else 0  # tokens at a frame's end that later frames do not see
        index = torch.arange(s, device=device)
        order = (index - (s - n) + 1).clamp(min=0) if prefix else index
        order, shared = order.repeat(f), (index < s - num_unshared).repeat(f)  # f*s
        frame = torch.arange(f, device=device).repeat_interleave(s)  # f*s
        same, earlier = frame[:, None] == frame[None], frame[:, None] > frame[None]
        seen = same & (order[None] <= order[:, None]) | earlier & shared[None]
        itself = torch.eye(f * s, dtype=torch.bool, device=device)
        mask = seen[None] & frames.valid.flatten(1)[:, None] | itself[None]
        inside = frames.valid.cumsum(2)  # b f s
        counted = frames.valid[:, :, : s - num_unshared].sum(2)
        start = counted.cumsum(1) - counted  # b f: valid tokens of earlier frames
        positions = (start[:, :, None] + inside - 1).clamp(min=0).flatten(1)
        if frames.media is None or frames.media_valid is None:
            return mask, positions, None
        media_frame = torch.arange(f, device=device).repeat_interleave(frames.media.shape[2])
        visible = (frame[:, None] >= media_frame[None])[None]
        visible = visible & frames.media_valid.flatten(1)[:, None]  # b f*s f*m
        return mask, positions, Media(frames.media.flatten(1, 2), visible)

    def _decode(
        self, frames: Frame, head: DiscreteHead, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The newest frame's readouts [b n c], its decoded actions [b k d], and the probability of
        each token [b q]. Noise is [b q bins].
        """
        mask, positions, media = self.attention_mask(frames)
        x = frames.tokens.flatten(1, 2)
        b, s = positions.shape  # s: of all frames
        slots = torch.arange(s + head.tokens - 1, device=x.device)
        cache = self.backbone.decoder.layers.empty_cache(x, len(slots))
        mask = torch.cat([mask, mask.new_zeros(b, s, len(slots) - s)], 2)
        hidden = self.backbone.encode(x, mask, positions, self.readouts, media, cache)
        readout, newest_mask, position = hidden.float(), mask[:, -1:], positions[:, -1:]
        newest_media = None if media is None else media._replace(mask=media.mask[:, -1:])

        def choose(done: Decoded, hidden: Tensor) -> Decoded:
            logits = self.backbone.logits(hidden, head.token_range)  # b 1 bins
            drawn = None if noise is None else noise.index_select(1, done.num_tokens)[:, 0]
            chosen = head.choose(logits[:, 0], drawn)[:, None]
            return Decoded(
                done.num_tokens + 1,
                done.ids.index_copy(1, done.num_tokens, chosen),
                done.logits.index_copy(1, done.num_tokens, logits),
                done.cache,
            )

        def decode_next(done: Decoded) -> Decoded:
            seen = newest_mask | (slots >= s) & (slots < s + done.num_tokens)
            last_id = done.ids.index_select(1, done.num_tokens - 1)[:, 0]
            hidden = self._encode_token(
                last_id, seen, position + done.num_tokens, newest_media, done.cache
            )
            return choose(done, hidden)

        ids = positions.new_zeros(b, head.tokens)
        logits = readout.new_zeros(b, head.tokens, head.bins)
        done = choose(Decoded(positions.new_zeros(1), ids, logits, cache), hidden[:, -1:])
        done = self.repeat(decode_next, done, head.tokens - 1)
        index = (done.ids - head.token_range[0])[..., None]
        probability = done.logits.softmax(-1).gather(2, index)[..., 0]
        return readout, head.actions(done.ids, done.logits), probability

    def _encode_token(
        self, ids: Tensor, mask: Tensor, positions: Tensor, media: Media | None, cache: Cache
    ) -> Tensor:
        """The hidden state [b 1 c] at a token [b] that follows those in the cache; mask [b 1 u]
        over its slots, positions [b 1].
        """
        x = self.backbone.embed_text(ids[:, None])
        return self.backbone.encode(x, mask, positions, 1, media, cache)


def split_episodes(state: State, b: int) -> list[State]:
    """The states of b episodes, one by one."""
    if isinstance(state, Frame):
        parts: list[Any] = [[None] * b if x is None else x.split(1) for x in state]
        return [Frame(*part) for part in zip(*parts, strict=True)]
    return [None] * b if state is None else list(state.split(1))


def join_episodes(states: list[State]) -> State:
    """The states of single episodes as one of all of them: the inverse of `split_episodes`."""
    parts: Any = states
    if isinstance(states[0], Frame):
        fields: Any = (
            None if field[0] is None else torch.cat(field) for field in zip(*parts, strict=True)
        )
        return Frame(*fields)
    return None if states[0] is None else torch.cat(parts)
