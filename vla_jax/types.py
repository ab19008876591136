"""What flows between the rooms: observations, batches, and the three protocols.

Axes: b batch, t window step, k chunk step, d action dim, p proprio, n readout tokens, c width, s
sequence, l text, v visual tokens of one image, h w pixels, m future frames, e width of CLIP's text
embedding. Masks are True where valid. This module imports nothing of ours.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax import Array as JaxArray
from jaxtyping import Bool, Float, Int, UInt8

Array = JaxArray | np.ndarray


class Observation(NamedTuple):
    """What the policy sees. A pytree of numpy (host) or JAX (device) arrays."""

    images: tuple[UInt8[Array, "b t h w 3"], ...]  # RGB, in config.cameras order
    image_mask: Bool[Array, "b t cameras"]  # False: this dataset lacks the camera
    proprio: Float[Array, "b t p"]
    proprio_mask: Bool[Array, " b"]
    prompt: Int[Array, "b l"]
    prompt_mask: Bool[Array, "b l"]
    step_mask: Bool[Array, "b t"]  # False: before the episode began
    past_action: Float[Array, "b t d"] | None = (
        None  # normalised; the action before each frame; None: not asked for
    )
    past_action_mask: Bool[Array, "b t"] | None = None  # False: the episode's first frame has none


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


class Loss(NamedTuple):
    """A loss as sum and weight apart, so that accumulation and any batch split give the same mean.

    The optimised value is `sum / weight` over the whole global batch. Metrics are (sum, weight)
    pairs per example: arrays of shape [b] or [b, d]; they carry no gradient.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, tuple[Array, Array]]


class Objective(NamedTuple):
    """What a batch costs, task by task ("action" and the auxiliary ones).

    The optimised value is the sum over tasks of scale * sum / weight, with the weight of the whole
    global batch. Metrics as in Loss.
    """

    sums: dict[str, Float[Array, ""]]
    metrics: dict[str, tuple[Array, Array]]


class Media(NamedTuple):
    """Visual tokens beside the sequence, for backbones that look at them by cross-attention."""

    tokens: Float[Array, "n m c"]  # of all images
    mask: Bool[
        Array, "n s m"
    ]  # which of them each token of the sequence sees; one that sees none gets nothing


@runtime_checkable
class Backbone(Protocol):
    """A vision-language model seen as: embed, then one pass over a token sequence."""

    width: int  # of the sequence
    visual_width: int  # of embed_image; another one only where `cross_attends`
    tokens_per_image: int
    cross_attends: bool  # visual tokens are given as Media; otherwise they stand in the sequence
    text_scale: (
        float  # what embed_text multiplies by; RoboVLMs' layout scales its learned tokens alike
    )

    def embed_image(self, images: UInt8[Array, "n h w 3"]) -> Float[Array, "n v c"]: ...

    def embed_text(self, tokens: Int[Array, "n l"]) -> Float[Array, "n l c"]: ...

    def __call__(
        self,
        x: Float[Array, "n s c"],
        mask: Any,
        positions: Int[Array, "n s"],
        readout: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "n r c"]:
        """Hidden states after the final norm; with `readout=r` only the last r positions (r = s
        otherwise).

        `mask[n, q, k]` is True where query q may look at key k; or it is an attention.FrameMask,
        and r counts in each frame.
        """
        ...

    def decode(
        self,
        x: Float[Array, "n s c"],
        mask: Any,
        positions: Int[Array, "n s"],
        cache: Any,
        media: Media | None = None,
    ) -> tuple[Float[Array, "n s c"], Any]:
        """Hidden states of tokens that follow those in an attention.Cache, and the cache with them.

        `mask[n, q, u]` is over the cache's slots; or, for the first tokens, an attention.FrameMask.
        """
        ...

    def cache(self, n: int, slots: int) -> Any:
        """An empty attention.Cache."""
        ...

    def logits(
        self, hidden: Float[Array, "n s c"], rows: tuple[int, int] | None = None
    ) -> Float[Array, "n s vocab"]:
        """float32 logits of all tokens, or of those from rows[0] to rows[1] - 1."""
        ...


class PolicyHead(Protocol):
    """A pure, causal function of a window of readouts."""

    def loss(
        self,
        readouts: Float[Array, "b t n c"],
        actions: Float[Array, "b t k d"],
        mask: Bool[Array, "b t k d"],
        key: JaxArray,
    ) -> Loss: ...

    def act(self, readouts: Float[Array, "b t n c"], key: JaxArray) -> Float[Array, "b t k d"]:
        """Normalised actions; a binary dim holds the probability of 1."""
        ...


class Policy(Protocol):
    """What simulators and robots know: JAX, torch, remote or scripted."""

    def reset(self, instruction: str) -> None: ...

    def act(
        self, images: dict[str, np.ndarray], proprio: np.ndarray | None = None
    ) -> Float[np.ndarray, "k d"]:
        """The next `k` actions in the robot's units."""
        ...
