"""What flows between the rooms: observations, batches, and the three protocols.

Axes: b batch, t window step, f sequences (frames encoded each alone, or windows; for an encoder its
images or texts), k chunk step, d action dim, p proprio, n readout tokens, q tokens that a head
writes or a task asks with, c width, s sequence, u slots of a cache, l text, v visual tokens, h w
pixels, m future frames, e width of CLIP's text embedding. Masks are True where valid. This module
imports nothing of ours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax import Array as JaxArray
from jaxtyping import Bool, Float, Int, Num, UInt8

Array = JaxArray | np.ndarray

# How images get the network's size, in Pillow's words: a config's model.resize.
RESIZES = ("lanczos", "bicubic", "bilinear")
DTYPES = ("float32", "bfloat16")  # in which a policy may compute


class SensorReading(NamedTuple):
    """What a sensor gave at every frame: values [b t ... numbers of a sample], float32 and
    normalised (uint8 of a picture), 0 where the mask [b t ...] says that a sample is not there. A
    frame without any: the dataset lacks the sensor, or nothing came. See vla_jax/robot/sensing.py.
    """

    values: Num[Array, "b t *reading numbers"]
    mask: Bool[Array, "b t *reading"]


class Observation(NamedTuple):
    """What the policy sees. A pytree of numpy (host) or JAX (device) arrays."""

    images: tuple[UInt8[Array, "b t h w 3"], ...]  # RGB, in config.cameras order
    image_mask: Bool[Array, "b t cameras"]  # False: this dataset lacks the camera
    proprio: Float[Array, "b t p"]
    proprio_mask: Bool[Array, "b p"]  # False: a number of the state that this robot lacks
    prompt: Int[Array, "b l"]
    prompt_mask: Bool[Array, "b l"]
    step_mask: Bool[Array, "b t"]  # False: before the episode began
    # Normalised, the action before each frame; None: not asked for.
    past_action: Float[Array, "b t d"] | None = None
    past_action_mask: Bool[Array, "b t"] | None = None  # False: the episode's first frame has none
    # False: a dim of the policy's actions that this robot lacks; None: it has all.
    action_dims: Bool[Array, "b d"] | None = None
    embodiment: Int[Array, " b"] | None = None  # which robot it is; None: not asked for
    sensors: dict[str, SensorReading] = {}  # noqa: RUF012  by name; without any no array


class Stream(NamedTuple):
    """A field of Observation: its axes and its type. `past`: of the actions before the frames, None
    where these are not asked for.
    """

    axes: tuple[str, ...]
    dtype: type
    past: bool = False


# Every stream but the images, of which there is one per camera, and the sensors, of which a config
# names any (vla_jax/robot/sensing.py).
STREAMS = {
    "image_mask": Stream(("b", "t", "cameras"), bool),
    "proprio": Stream(("b", "t", "p"), np.float32),
    "proprio_mask": Stream(("b", "p"), bool),
    "prompt": Stream(("b", "l"), np.int32),
    "prompt_mask": Stream(("b", "l"), bool),
    "step_mask": Stream(("b", "t"), bool),
    "past_action": Stream(("b", "t", "d"), np.float32, past=True),
    "past_action_mask": Stream(("b", "t"), bool, past=True),
    "action_dims": Stream(("b", "d"), bool),
    "embodiment": Stream(("b",), np.int32),
}


class ObservationSizes(NamedTuple):
    """What an observation's shapes follow from.

    Attributes:
        b, t, p, l, d: the axes' sizes.
        image_size: pixels of a side, one per camera.
        past_action: with the actions before the frames.
        sensors: of each, by name, the shape of a reading and the type of its values.
    """

    b: int
    t: int
    p: int
    l: int  # noqa: E741
    d: int
    image_size: tuple[int, ...]
    past_action: bool = False
    sensors: Mapping[str, tuple[tuple[int, ...], type]] = {}


def new_observation(
    sizes: ObservationSizes, make: Callable[[tuple[int, ...], type], Any]
) -> Observation:
    """An observation of arrays (or shapes) that `make(shape, dtype)` gives, stream by stream."""
    b, t = sizes.b, sizes.t
    axes = {"b": b, "t": t, "p": sizes.p, "l": sizes.l, "d": sizes.d}
    axes["cameras"] = len(sizes.image_size)
    streams = {
        name: make(tuple(axes[axis] for axis in stream.axes), stream.dtype)
        for name, stream in STREAMS.items()
        if sizes.past_action or not stream.past
    }
    images = tuple(make((b, t, size, size, 3), np.uint8) for size in sizes.image_size)
    sensors = {
        name: SensorReading(make((b, t, *shape), dtype), make((b, t, *shape[:-1]), bool))
        for name, (shape, dtype) in sizes.sensors.items()
    }
    return Observation(images=images, sensors=sensors, **streams)


def newest(obs: Observation) -> Observation:
    """The observation with its last frame alone."""
    frame: Any = {
        name: value[:, -1:]
        for name, stream in STREAMS.items()
        if "t" in stream.axes and (value := getattr(obs, name)) is not None
    }
    sensors = {
        name: SensorReading(*(x[:, -1:] for x in reading)) for name, reading in obs.sensors.items()
    }
    images = tuple(image[:, -1:] for image in obs.images)
    return obs._replace(images=images, sensors=sensors, **frame)


class Future(NamedTuple):
    """Frames to be predicted: for every window step those `m` offsets later."""

    images: tuple[UInt8[Array, "b t m h w 3"], ...]  # in config.cameras order
    mask: Bool[
        Array, "b t m cameras"
    ]  # False: past the end, before the beginning, or a camera the dataset lacks


class ImageText(NamedTuple):
    """One image with a text about it, for co-training. Row i has nothing to do with row i of the
    actions.
    """

    images: UInt8[Array, "b h w 3"]
    tokens: Int[Array, "b l"]  # question and answer, padded on the right
    mask: Bool[Array, "b l"]
    target: Bool[Array, "b l"]  # True: a token of the answer, to be predicted


class ActionTokens(NamedTuple):
    """Every frame's chunk as the tokens of the language model that a head or a task should write,
    where only the host can write them: padded on the right, and which of them are there.
    """

    ids: Int[Array, "b t q"]
    mask: Bool[Array, "b t q"]


class Batch(NamedTuple):
    """One training batch."""

    obs: Observation
    actions: Float[
        Array, "b t k d"
    ]  # normalised; (t, k) is the action at time t + k, the current one included
    action_mask: Bool[
        Array, "b t k d"
    ]  # False: past the end, before the beginning, or a dim the robot lacks
    dataset_id: Int[Array, " b"]
    future: Future | None = None  # None: forward prediction is off
    text_target: Float[Array, "b e"] | None = (
        None  # CLIP's embedding of the instruction; None: alignment is off
    )
    image_text: ImageText | None = None  # None: co-training is off
    action_tokens: ActionTokens | None = None  # None: nobody asks for them


class Loss(NamedTuple):
    """A loss as a sum over the steps that count, so that accumulation and any batch split give the
    same mean: whoever holds the masks of the whole batch divides by their count.

    Metrics are (sum, weight) pairs per example: arrays of shape [b] or [b, d]; they carry no
    gradient.
    """

    sum: Float[Array, ""]
    metrics: dict[str, tuple[Array, Array]]


class Objective(NamedTuple):
    """What a batch costs, task by task ("action" and the auxiliary ones).

    The optimised value is the sum over tasks of loss weight * sum / count, with the count of the
    whole global batch. Metrics as in Loss.
    """

    sums: dict[str, Float[Array, ""]]
    metrics: dict[str, tuple[Array, Array]]


class Media(NamedTuple):
    """Visual tokens beside the sequence, for backbones that look at them by cross-attention."""

    tokens: Float[Array, "f v c"]  # of all images
    mask: Bool[
        Array, "f s v"
    ]  # which of them each token of the sequence sees; one that sees none gets nothing


@runtime_checkable
class Backbone(Protocol):
    """A vision-language model seen as: embed, then one pass over a token sequence."""

    width: int  # of the sequence
    # Of a visual token; another one than `width` only where `cross_attends`. embed_image may give
    # more behind it, which a backbone takes out of the sequence's tokens again.
    visual_width: int
    tokens_per_image: int  # of the size that the tower's positions are for
    cross_attends: bool  # visual tokens are given as Media; otherwise they stand in the sequence
    # An image's tokens have a row and a column in their positions, see sequence.places.
    grid_positions: bool
    text_scale: (
        float  # what embed_text multiplies by; RoboVLMs' layout scales its learned tokens alike
    )

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v _"]: ...

    def embed_text(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]: ...

    def __call__(
        self,
        x: Float[Array, "f s _"],
        mask: Any,
        positions: Int[Array, "f s *axes"],
        num_queries: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "f r c"]:
        """Hidden states after the final norm; with `num_queries=r` only the last r positions (r = s
        otherwise).

        `mask[f, q, k]` is True where query q may look at key k; or it is an attention.FrameMask,
        and r counts in each frame.
        """
        ...

    def decode(
        self,
        x: Float[Array, "f s _"],
        mask: Any,
        positions: Int[Array, "f s *axes"],
        cache: Any,
        media: Media | None = None,
    ) -> tuple[Float[Array, "f s c"], Any]:
        """Hidden states of tokens that follow those in an attention.Cache, and the cache with them.

        `mask[f, q, u]` is over the cache's slots; or, for the first tokens, an attention.FrameMask.
        """
        ...

    def cache(self, f: int, slots: int) -> Any:
        """An empty attention.Cache."""
        ...

    def logits(
        self, hidden: Float[Array, "f s c"], token_range: tuple[int, int] | None = None
    ) -> Float[Array, "f s vocab"]:
        """float32 logits of all tokens, or of those of the ids in range(*token_range)."""
        ...


class Prefix(NamedTuple):
    """All that stands before a head's own tokens, run through the backbone: see models/decoding.py.

    Attributes:
        cache: an attention.Cache with the keys and values of every layer, and room for the head's
            tokens.
        hidden: of its last token.
        seen: the cache's slots that the next token sees, itself not among them.
        position: of the last token.
        media: what the next token sees of images beside the sequence.
    """

    cache: Any
    hidden: Float[Array, "f c"]
    seen: Bool[Array, "f u"]
    position: Int[Array, "f 1"]
    media: Media | None


class Guide(NamedTuple):
    """What a flow is led to, in network units: the plan that is underway, and how much of it each
    number of a chunk has to keep, 0 to 1. See vla_jax/robot/realtime.py.
    """

    actions: Float[Array, "b k a"]
    weight: Float[Array, "b k #a"]


class HeadContext(NamedTuple):
    """What a head may look at. It says what it wants (PolicyHead.acts_on, trains_on); the rest is
    None.

    Attributes:
        readouts: float32 ["b t n c"], hidden states at the readout tokens of every frame.
        predictors: float32 ["f q c"], hidden states that predict the head's own tokens: at the last
            readout and at all tokens of `teacher` but the last.
        prefix: a Prefix, of the newest frame (of the whole window with history "interleaved"); in
            training of every frame.
        backbone: a Backbone, which embeds tokens, decodes them behind the prefix, gives logits of
            hidden states.
        dims: ["b d"], the action dims that the robot has; None: all. A head that looks at actions
            sees the same in the place of the others, in training and acting.
        state: float32 ["b t p"], normalised, 0 for what the robot lacks; for a head that looks at
            it itself (VLAConfig.state_to_head).
        taught: what `teacher` gave, of a head that trains on tokens.
        guide: a Guide, all of the policy's dims; None, and always for a head that does not
            `inpaint`: its chunk follows from what it sees.
    """

    readouts: Any = None
    predictors: Any = None
    prefix: Any = None
    backbone: Any = None
    dims: Any = None
    state: Any = None
    taught: Any = None
    guide: Any = None


class PolicyHead(Protocol):
    """What makes actions of what the backbone says of a window: pure, and causal in time."""

    acts_on: str  # "readouts" or "prefix"
    trains_on: str  # "readouts", "tokens" (predictors of `teacher`) or "prefix"
    num_tokens: int  # tokens of the language model that it writes behind the readouts; 0: none
    inpaints: bool  # whether `act` can be led to a plan, HeadContext.guide

    def teacher(
        self, batch: Batch, mask: Bool[Array, "b t k d"]
    ) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]]:
        """The tokens that should be written, and which of them are there: their number may vary,
        padded on the right. `mask` is of the actions that count. Asked only where trains_on is
        "tokens".
        """
        ...

    def loss(
        self,
        context: HeadContext,
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: JaxArray,
    ) -> Loss: ...

    def act(self, context: HeadContext, key: JaxArray) -> Float[Array, "b t k d"]:
        """Normalised actions, of which the last step's count; a binary dim holds the probability
        of 1. From readouts of t steps those of every step, from a prefix those of the newest. NaN
        throughout: the head has no chunk to give, and a robot is held.
        """
        ...

    def noise(self, key: JaxArray) -> Array | None:
        """What `act` draws with a key for one example, for programs that cannot draw alike."""
        ...


class Seen(NamedTuple):
    """What a policy is shown at a step.

    Attributes:
        images: uint8 RGB [h w 3] by camera.
        proprio: the state [p], robot units.
        executed: the action [d] carried out since the step before; None: the first of its chunk.
        sensors: readings by name, see vla_jax/robot/sensing.py.
        underway: a vla_jax.robot.realtime.Underway, the plan that goes on while a policy that flows
            thinks; None: nothing does.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray | None = None
    executed: np.ndarray | None = None
    sensors: Mapping[str, Any] | None = None
    underway: Any = None


class Policy(Protocol):
    """What simulators and robots know: JAX, torch, remote or scripted."""

    def reset(self, instruction: str) -> None: ...

    def act(
        self, images: dict[str, np.ndarray], proprio: np.ndarray | None = None
    ) -> Float[np.ndarray, "k d"]:
        """The next `k` actions in the robot's units."""
        ...
