"""The network in torch: new frames and the states of their episodes in, chunks of normalised
actions and states out.

    Network.vision(images)              uint8 [b cameras h w 3] -> visual tokens [b v w] of each
                                        camera
    Network.frame(visual, inputs)       -> Frame: the tokens of one frame, laid out as in
                                           vla_jax/models/sequence.py
    Network.initial(frame)              -> State: zeros, to stand before an episode's first frame
    Network.step(state, frame, inputs)  -> (State, Step): one pass of the backbone over the new
                                           frame (history "head", "one_step"), or over the tokens
                                           of the window's frames ("interleaved")

All shapes are fixed, and so a server can batch episodes and a runtime without Python can carry the
state: with history "head" the readouts [b t n c] of the window, with "interleaved" its frames; None
for a head that looks at one frame. The head reads the window again at each step from a zero state,
as it was trained. Before an episode's first frame it reads that frame, or with history_start "grow"
nothing: what is there moves to the window's beginning (vla_jax/models/starts.py).

Axes: b episodes, f frames of a pass, t window step, s tokens of a frame, l text, v visual tokens of
an image, m visual tokens of a frame, n readouts, c width, w width of visual tokens, k chunk step, d
action dim, p proprio, q action tokens; h w pixels of an image.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import expert, heads, token_heads
from .attention import Cache
from .backbones import BACKBONES, Media
from .decoding import decode, repeated
from .layers import scaled
from .places import concat_tokens, places, squares
from .prompt import Prompt
from .sensors import SensorTokens
from .token_heads import TokenHead
from .tokens import ActionToken, EmbodimentToken, StateToken
from .vision import Keypoints, KeypointsConfig, Resampler, ResamplerConfig

LAYOUTS = ("prefix", "robovlms", "robovlms_pre")
HISTORIES = ("head", "interleaved", "one_step")
STARTS = ("repeat", "grow")
HEADS = {**heads.HEADS, **token_heads.HEADS, "expert": expert.ExpertHead}
SENSOR = "sensor_"  # how the names of sensors begin among inputs, and of their parameters


class Inputs(NamedTuple):
    """What comes in with a new frame of each of b episodes.

    images uint8 [b cameras h w 3], those of smaller cameras in the upper left; prompt ids [b l]
    padded on the right, and their mask; first [b]: the episode begins. proprio [b p] and past, the
    action before [b d], normalised, and noise, for networks that take them; at an episode's first
    frame there is no action before, whatever stands there. For networks of robots that differ: dims
    [b d] and proprio_mask [b p], which of the policy's dims the robot has, and embodiment [b],
    which robot it is. plan: what a chunk is led to [b k d], normalised, and plan_weight [b k], how
    much each step counts (realtime.py). sensors: readings as sensing.py has them, by name as
    "sensor_imu", and "sensor_imu_mask".
    """

    images: Tensor
    prompt: Tensor
    prompt_mask: Tensor
    first: Tensor
    proprio: Tensor | None
    past: Tensor | None
    noise: Tensor | None
    dims: Tensor | None = None
    proprio_mask: Tensor | None = None
    embodiment: Tensor | None = None
    plan: Tensor | None = None
    plan_weight: Tensor | None = None
    sensors: dict[str, Tensor] = {}  # noqa: RUF012


def inputs_of(named: dict[str, Tensor]) -> Inputs:
    """Inputs of tensors by name: those of its fields, and of sensors."""
    sensors = {name: x for name, x in named.items() if name.startswith(SENSOR)}
    fields: Any = {name: named.get(name) for name in Inputs._fields if name != "sensors"}
    return Inputs(**fields, sensors=sensors)


class Frame(NamedTuple):
    """Tokens [b f s c] of frames, and valid [b f s]: which are real, not padding. The same of
    visual tokens beside the sequence, [b f m w] and [b f m], for backbones that take them there.
    """

    tokens: Tensor
    valid: Tensor
    media: Tensor | None
    media_valid: Tensor | None


class Grown(NamedTuple):
    """The readouts [b t n c] of a window that grows, and present [b t]: which of them are of the
    episode.
    """

    readouts: Tensor
    present: Tensor


State = Tensor | Frame | Grown | None  # see the top of this file


class Step(NamedTuple):
    """readout [b n c] of the new frame; action [b k d], normalised, NaN: none; probability [b q] of
    each of its numbers' tokens (q = k * d), of heads that write some.
    """

    readout: Tensor
    action: Tensor
    probability: Tensor | None


class Network(nn.Module):
    """`body` is "network" of config.json, `image_sizes` pixels of a side of each camera's images.
    Parameters have the names of the JAX model, "." for "/".
    """

    def __init__(self, body: dict[str, Any], image_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.image_sizes = image_sizes
        sequence, head = body["sequence"], body["head"]
        # Artefacts of before 2026-11-28 do not say it.
        start = sequence.get("history_start", "repeat")
        for what, name, known in (
            ("backbone", body["backbone"]["kind"], tuple(BACKBONES)),
            ("head", head["kind"], tuple(HEADS)),
            ("layout", sequence["layout"], LAYOUTS),
            ("history", sequence["history"], HISTORIES),
            ("history_start", start, STARTS),
        ):
            if name not in known:
                raise ValueError(
                    f"config.json: {what}: expected one of {', '.join(known)}, got {name!r}"
                )
        self.backbone = BACKBONES[body["backbone"]["kind"]](body["backbone"])
        width = self.backbone.width
        self.head = HEADS[head["kind"]](width, head)
        self.layout, self.interleaved = sequence["layout"], sequence["history"] == "interleaved"
        self.grows = start == "grow"
        # Whether anything of a frame is kept for the next ones.
        self.keeps = self.interleaved or not self.head.reads_prefix
        self.window, self.readouts = sequence["window"], sequence["readouts"]
        self.mutual = sequence.get("mutual", False)  # a frame's readouts see each other
        self.readout_embedding = nn.Parameter(torch.empty(self.readouts, width))
        resampler = sequence["resampler"]
        visual = self.backbone.visual_width
        # How the steps of decoding are repeated: an exported program has a loop of its own.
        self.repeat = repeated
        self.resampler, self.keypoints = None, None
        if resampler and "points" in resampler:
            points = KeypointsConfig(**resampler)
            self.keypoints = nn.ModuleList([Keypoints(visual, points) for _ in image_sizes])
        elif resampler:
            self.resampler = Resampler(visual, ResamplerConfig(**resampler))
        sides = [self.backbone.side(size) for size in image_sizes]
        self.squares = squares(self.layout, sides) if all(sides) and not resampler else []
        state, past = sequence["state"], sequence["past"]
        self.state_dims = state["dims"] if state else 0  # numbers of the state that are looked at
        to_head = head.get("state") == "expert"
        self.prompt = Prompt(sequence.get("state_words"), body["backbone"]["vocab"])
        own_state = bool(state) and not to_head and not self.prompt.words
        self.state = StateToken(width, state["dims"], state["gripper"]) if own_state else None
        self.past = ActionToken(width, head["action_dim"], past["binary"]) if past else None
        count = sequence.get("embodiments", 0)
        self.embodiment = EmbodimentToken(width, count) if count else None
        # Whether some robot lacks a dim that the head looks at, or a number of the state.
        self.masks_dims = head.get("masked", False)
        self.masks_state = bool(state) and state.get("masked", False)
        # Artefacts of before 2026-11-29 have none.
        self.sensors = tuple(each["name"] for each in sequence.get("sensors", ()))
        for each in sequence.get("sensors", ()):
            self.add_module(f"{SENSOR}{each['name']}", SensorTokens(each, width))

    # ------------------------------------------------------------------------------------ the frame

    def vision(self, images: Tensor) -> list[Tensor]:
        """uint8 [b cameras h w 3], cameras in the config's order -> [b v w] of each: one pass for
        those of equal size.
        """
        out: dict[int, Tensor] = {}
        for size in dict.fromkeys(self.image_sizes):
            cameras = [i for i, own in enumerate(self.image_sizes) if own == size]
            seen = torch.stack([images[:, i, :size, :size] for i in cameras], 1)
            visual = self.backbone.embed_image(seen.flatten(0, 1))
            if self.resampler or self.keypoints:  # without the features of inner layers
                visual = visual[..., : self.backbone.visual_width]
            if self.resampler is not None:
                visual = self.resampler(visual)
            visual = visual.unflatten(0, seen.shape[:2])
            for i, camera in enumerate(cameras):
                tokens = visual[:, i]
                out[camera] = self.keypoints[camera](tokens) if self.keypoints else tokens
        return [out[camera] for camera in range(len(out))]

    def frame(self, visual: list[Tensor], inputs: Inputs) -> Frame:
        """Visual tokens [b v w] of each camera -> the tokens of one frame [b 1 s c]."""
        ids, prompt_valid = self.prompt(inputs)
        words = self.backbone.embed_text(ids)  # b l c
        present = torch.ones_like(inputs.first[:, None])  # b 1
        media = torch.cat(visual if self.layout == "prefix" else visual[::-1], 1)  # b m w
        media_valid = present.expand(-1, media.shape[1])
        images = [] if self.backbone.cross_attends else [(media, media_valid)]
        numbers = [
            (self._scaled_as_words(token)[:, None], valid)
            for token, valid in self._numbers(inputs, present)
        ]
        for name in (f"{SENSOR}{each}" for each in self.sensors):
            make = getattr(self, name)
            made = make(inputs.sensors[name], inputs.sensors[f"{name}_mask"])  # b n c
            numbers.append((self._scaled_as_words(made), present.expand(-1, made.shape[1])))
        if self.layout == "prefix":
            parts = [*images, (words, prompt_valid), *numbers]
        else:  # the prompt's last token stands where nothing sees it: it is left out
            index = torch.arange(1, prompt_valid.shape[1], device=prompt_valid.device)
            inner = prompt_valid[:, 1:] & (index < prompt_valid.sum(1, keepdim=True) - 1)
            begin = (words[:, :1], prompt_valid[:, :1])
            parts = [begin, *images, (words[:, 1:], inner), *numbers]
        if self.layout == "robovlms_pre":  # but for the next frame, which begins with it
            length = prompt_valid.sum(1, keepdim=True)
            index = (length - 1).clamp(min=0)[..., None].expand(-1, 1, words.shape[2])
            parts = [(words.gather(1, index), length > 1), *parts]
        readouts = self._scaled_as_words(self.readout_embedding).expand(len(words), -1, -1)
        parts.append((readouts, present.expand(-1, self.readouts)))
        tokens = concat_tokens([part for part, _ in parts])[:, None]
        valid = torch.cat([mask for _, mask in parts], 1)[:, None]
        if not self.backbone.cross_attends:
            return Frame(tokens, valid, None, None)
        return Frame(tokens, valid, media[:, None], media_valid[:, None])

    def _numbers(self, inputs: Inputs, present: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The tokens [b c] made of numbers, and whether each is there [b 1]; `present` is True."""
        tokens = []
        if self.embodiment is not None:
            assert inputs.embodiment is not None
            tokens.append((self.embodiment(inputs.embodiment), present))
        if self.state is not None:
            assert inputs.proprio is not None
            mask = inputs.proprio_mask
            known = present if mask is None else mask.any(1, keepdim=True)
            tokens.append((self.state(inputs.proprio, mask), known))
        if self.past is not None:
            assert inputs.past is not None
            valid = ~inputs.first[:, None]
            tokens.append((self.past(torch.where(valid, inputs.past, 0)), valid))
        return tokens

    def _scaled_as_words(self, tokens: Tensor) -> Tensor:
        """Learned tokens [... c], which RoboVLMs' layouts scale as they do words."""
        scale = 1.0 if self.layout == "prefix" else self.backbone.text_scale
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
        if not self.keeps:
            return None
        device = frame.tokens.device
        readouts = torch.zeros(b, self.window, self.readouts, self.backbone.width, device=device)
        if not self.grows:
            return readouts
        return Grown(readouts, torch.zeros(b, self.window, dtype=torch.bool, device=device))

    def step(self, state: State, frame: Frame, inputs: Inputs) -> tuple[State, Step]:
        """The new state and what comes out at the new frame."""
        seen = self.remember(state, self.seen(frame), inputs.first)
        return seen if self.keeps else None, self.conclude(seen, inputs)

    def seen(self, frame: Frame) -> Frame | Tensor:
        """What the window keeps of a frame: its tokens, or readouts [b 1 n c]. This alone, which
        needs no frame before, and `conclude` run the backbone.
        """
        whole = self.interleaved or self.head.reads_prefix
        return frame if whole else self._encode(frame)

    def remember(self, state: State, seen: Frame | Tensor, first: Tensor) -> Frame | Tensor | Grown:
        """The window with what is `seen` at its end."""
        if isinstance(seen, Frame):
            if not self.interleaved:
                return seen
            assert isinstance(state, Frame)
            return self._in_window(state, seen, first)
        if self.grows:
            assert isinstance(state, Grown)
            earlier = state.present[:, 1:] & ~first[:, None]
            return Grown(
                torch.cat([state.readouts[:, 1:], seen], 1),
                torch.cat([earlier, torch.ones_like(first)[:, None]], 1),
            )
        assert isinstance(state, Tensor)
        # The first frame stands for those before the episode began.
        return torch.where(first[:, None, None, None], seen, torch.cat([state[:, 1:], seen], 1))

    def conclude(self, window: Frame | Tensor | Grown, inputs: Inputs) -> Step:
        """What comes out at the newest frame of a window that `remember` gave."""
        if isinstance(self.head, TokenHead):
            assert isinstance(window, Frame)
            readout, ids, logits = decode(self, window, self.head, inputs.noise, inputs.dims)
            return Step(readout, *self.head.actions(ids, logits))
        if isinstance(self.head, expert.ExpertHead):
            assert isinstance(window, Frame)
            return Step(*expert.step(self, window, inputs), None)
        if isinstance(window, Frame):
            readouts, present = self._encode(window), window.valid[:, :, -1]  # b f n c, b f
        elif isinstance(window, Grown):
            readouts, present = window
        else:
            readouts, present = window, None
        if self.grows:
            assert present is not None
            read, newest = self._present_first(readouts, present)
        else:
            read, newest = readouts, None
        led = inputs.plan is not None and inputs.plan_weight is not None
        plan: Any = (inputs.plan, inputs.plan_weight) if led else None
        action = self.head.act(read.flatten(2), inputs.noise, newest, inputs.dims, plan)
        return Step(readouts[:, -1], action, None)

    def _present_first(self, window: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Readouts [b t n c] with those that are present [b t] first; and where the newest is."""
        t = window.shape[1]
        absent = (~present).sum(1)
        index = (torch.arange(t, device=window.device)[None] + absent[:, None]) % t
        return window.gather(1, index[..., None, None].expand_as(window)), t - 1 - absent

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
        """Which token sees which [b f*s f*s], their positions [b f*s *axes], and the media: see
        vla_jax/models/sequence.py.
        """
        frames = frames._replace(valid=self._in_row(frames.valid))
        f, s = frames.valid.shape[1:]
        device, n, prefix = frames.valid.device, self.readouts, self.layout == "prefix"
        num_unshared = n if prefix else 0  # tokens at a frame's end that later frames do not see
        index = torch.arange(s, device=device)
        order = (index - (s - n) + 1).clamp(min=0) if prefix else index
        if self.mutual:
            order = torch.where(index >= s - n, order[-1], order)
        order, shared = order.repeat(f), (index < s - num_unshared).repeat(f)  # f*s
        frame = torch.arange(f, device=device).repeat_interleave(s)  # f*s
        same, earlier = frame[:, None] == frame[None], frame[:, None] > frame[None]
        seen = same & (order[None] <= order[:, None]) | earlier & shared[None]
        itself = torch.eye(f * s, dtype=torch.bool, device=device)
        mask = seen[None] & frames.valid.flatten(1)[:, None] | itself[None]
        positions = places(frames.valid, num_unshared, self.squares)
        if frames.media is None or frames.media_valid is None:
            return mask, positions, None
        media_frame = torch.arange(f, device=device).repeat_interleave(frames.media.shape[2])
        visible = (frame[:, None] >= media_frame[None])[None]
        visible = visible & frames.media_valid.flatten(1)[:, None]  # b f*s f*m
        return mask, positions, Media(frames.media.flatten(1, 2), visible)

    def _in_row(self, valid: Tensor) -> Tensor:
        """Which tokens [b f s] are there: what opens a frame where the frame before is."""
        if self.layout != "robovlms_pre":
            return valid
        there = valid[:, :, 1:2]
        before = torch.cat([torch.zeros_like(there[:, :1]), there[:, :-1]], 1)
        return torch.cat([valid[:, :, :1] & before, valid[:, :, 1:]], 2)

    def _encode_token(
        self, ids: Tensor, mask: Tensor, positions: Tensor, media: Media | None, cache: Cache
    ) -> Tensor:
        """The hidden state [b 1 c] at a token [b] that follows those in the cache; mask [b 1 u]
        over its slots, positions [b 1].
        """
        x = self.backbone.embed_text(ids[:, None])
        return self.backbone.encode(x, mask, positions, 1, media, cache)
