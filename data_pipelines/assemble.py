"""What stands in a batch: the numbers, words and pixels of given windows, put together from columns
and open visits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from data_pipelines import windows
from data_pipelines.buffers import Buffers
from data_pipelines.frames import Pool, Span
from data_pipelines.index import Split
from data_pipelines.mixture import Part
from vla_jax.types import Batch, Future, Observation

PREFETCH = 2  # batches made ahead of the one in use
KEEP = PREFETCH + 3  # free arrays to remember for each camera


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a window holds and how windows are drawn.

    Attributes:
        window: frames per window, t.
        chunk: actions per frame, k.
        cameras: slots in the order the model takes them; one that a dataset lacks is black and
            masked.
        image_size: pixels, height and width, one per camera.
        prompt_length: tokens, l.
        batch_size: windows per global batch.
        seed: of the order.
        ram_budget: bytes of decoded frames, over all hosts; it decides how many visits are mixed at
            a time.
        windows_per_visit: consecutive windows of an episode that are decoded together. Fewer mix
            better in the same memory, and cost window - 1 more decoded frames each.
        shuffle: endless shuffled epochs; False: one pass in file order.
        past_action: also give the action before each frame.
        future: also give the frames so many steps after each frame; () decodes none.
    """

    window: int
    chunk: int
    cameras: tuple[str, ...]
    image_size: tuple[int, ...]
    prompt_length: int
    batch_size: int
    seed: int
    ram_budget: int
    windows_per_visit: int
    shuffle: bool
    past_action: bool = False
    future: tuple[int, ...] = ()


class Assembler:
    """Makes batches of the windows of a mixture."""

    def __init__(
        self,
        parts: list[Part],
        config: LoaderConfig,
        encode: Callable[[str], np.ndarray],
        target: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        """Encodes all instructions. Arguments as of `Loader`.

        Raises ValueError when the prompt length or the future do not fit the data.
        """
        self._parts, self._config = parts, config
        self._splits = [part.index.splits[part.split] for part in parts]
        _check_future(config.future, self._splits)
        self._prompts = [
            _prompts(split.sentences, encode, config.prompt_length) for split in self._splits
        ]
        self._targets = None if target is None else _Targets(target, self._splits[0].sentences[0])
        t, m = config.window, len(config.future)
        self._images = [Buffers((t, size, size, 3), KEEP) for size in config.image_size]
        self._futures = [Buffers((t, m, size, size, 3), KEEP) for size in config.image_size]
        self._state_dim = max(len(part.state_spec.names) for part in parts)

    def empty(self, b: int) -> Batch:
        """Arrays for b windows, to be filled in."""
        config = self._config
        t, k, d = config.window, config.chunk, len(self._parts[0].action_spec.names)
        length = config.prompt_length
        cameras, m = len(config.cameras), len(config.future)
        batch = Batch(
            Observation(
                images=tuple(buffers.take(b) for buffers in self._images),
                image_mask=np.empty((b, t, cameras), bool),
                proprio=np.zeros((b, t, self._state_dim), np.float32),
                proprio_mask=np.empty(b, bool),
                prompt=np.empty((b, length), np.int32),
                prompt_mask=np.empty((b, length), bool),
                step_mask=np.empty((b, t), bool),
            ),
            np.empty((b, t, k, d), np.float32),
            np.empty((b, t, k, d), bool),
            np.empty(b, np.int32),
        )
        if config.past_action:
            past, mask = np.empty((b, t, d), np.float32), np.empty((b, t), bool)
            batch = batch._replace(obs=batch.obs._replace(past_action=past, past_action_mask=mask))
        if config.future:
            images = tuple(buffers.take(b) for buffers in self._futures)
            batch = batch._replace(future=Future(images, np.empty((b, t, m, cameras), bool)))
        if self._targets is not None:
            batch = batch._replace(text_target=np.empty((b, self._targets.width), np.float32))
        return batch

    def fill_numbers(
        self,
        batch: Batch,
        number: int,
        here: Int64[np.ndarray, " r"],
        rows: Int64[np.ndarray, " r"],
    ) -> tuple[Int64[np.ndarray, "r t"], Int64[np.ndarray, "r t m"]]:
        """Fills in all but the images of the rows `here` of a batch, from the newest steps `rows`
        of a dataset.

        Returns the rows of their frames in the dataset's columns, and those of the frames in their
        future.
        """
        part, split, config = self._parts[number], self._splits[number], self._config
        episode = np.searchsorted(split.first, rows, side="right") - 1
        # Episodes without steps share their first row with the next one; `right` finds the last of
        # them.
        first, length = (
            split.first[episode].astype(np.int64),
            split.length[episode].astype(np.int64),
        )
        at = windows.steps(rows - first, length, config.window, config.chunk, config.future)
        actions = windows.actions(split.actions, first, at, part.action_spec)
        batch.actions[here] = part.action_spec.normalise(actions)
        batch.action_mask[here] = at.action_mask[..., None]
        frames = first[:, None] + at.frames
        state = part.state_spec.normalise(np.asarray(split.state)[frames])
        batch.obs.proprio[here, :, : state.shape[-1]] = state
        batch.obs.proprio_mask[here] = state.shape[-1] > 0
        has = np.array([slot in split.frames for slot in config.cameras])
        batch.obs.image_mask[here] = has
        prompt, mask = self._prompts[number]
        sentence = split.instruction[episode]
        batch.obs.prompt[here], batch.obs.prompt_mask[here] = prompt[sentence], mask[sentence]
        batch.obs.step_mask[here] = at.step_mask
        batch.dataset_id[here] = number
        if batch.obs.past_action is not None and batch.obs.past_action_mask is not None:
            found = windows.past_actions(split.actions, first, at, part.action_spec)
            batch.obs.past_action[here], batch.obs.past_action_mask[here] = found
        if batch.future is not None:
            batch.future.mask[here] = at.future_mask[..., None] & has
        if self._targets is not None and batch.text_target is not None:
            batch.text_target[here] = [self._targets.find(split.sentences[i]) for i in sentence]
        return frames, first[:, None, None] + at.future

    def fill_images(
        self,
        batch: Batch,
        here: Int64[np.ndarray, " r"],
        frames: tuple[np.ndarray, np.ndarray],
        pool: Pool,
        visit: int,
    ) -> None:
        """Copies the pixels of the rows `here`, all of one open visit, from what `fill_numbers`
        says they are.
        """
        span = pool.span(visit)
        self._copy(batch.obs.images, here, _places(span, frames[0]), pool, visit)
        if batch.future is not None:
            self._copy(batch.future.images, here, _places(span, frames[1]), pool, visit)
            for camera, images in enumerate(batch.future.images):
                for row in here:
                    images[row][~batch.future.mask[row, ..., camera]] = 0

    def _copy(
        self, images: tuple[Any, ...], here: np.ndarray, places: np.ndarray, pool: Pool, visit: int
    ) -> None:
        """images[camera][here] = the frames of the visit that stand at `places`, or black without
        the camera.
        """
        for camera, out in enumerate(images):
            found = pool.frames(visit, camera)
            for row, place in zip(here, places, strict=True):
                if found is None:
                    out[row] = 0
                else:
                    # "clip" lets take write into `out` without a copy; what is out of range is
                    # masked
                    found.take(place, axis=0, out=out[row], mode="clip")


class _Targets:
    """The embeddings of sentences, each computed when it is first met."""

    def __init__(self, embed: Callable[[str], np.ndarray], example: str) -> None:
        self._embed, self._known = embed, dict[str, np.ndarray]()
        self.width = len(self.find(example))

    def find(self, sentence: str) -> Float32[np.ndarray, " e"]:
        if sentence not in self._known:
            found = np.asarray(self._embed(sentence))
            wanted = (self.width,) if self._known else found.shape[:1]
            if found.dtype != np.float32 or found.shape != wanted or not np.isfinite(found).all():
                raise ValueError(
                    f"target: expected finite float32 of shape {wanted or '[e]'} for {sentence!r},"
                    f" got {found.dtype} of shape {found.shape}; mend the function given to Loader"
                )
            self._known[sentence] = found
        return self._known[sentence]


def _places(span: Span, frames: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
    """Where frames stand among the rows of a span; anywhere for one that is not among them."""
    return frames - span.start if not span.ahead else np.searchsorted(span.rows(), frames)


def _check_future(offsets: tuple[int, ...], splits: list[Split]) -> None:
    longest = max(int(split.length.max()) for split in splits)
    if any(not 1 <= offset < longest for offset in offsets) or len(set(offsets)) != len(offsets):
        raise ValueError(
            "objectives.forward.offsets: expected different numbers of steps from 1 to"
            f" {longest - 1} (the longest episode has {longest}), got {offsets}"
        )


def _prompts(
    sentences: tuple[str, ...], encode: Callable[[str], np.ndarray], length: int
) -> tuple[Int32[np.ndarray, "sentences l"], Bool[np.ndarray, "sentences l"]]:
    """Token ids of distinct sentences, padded with zeros on the right, and their mask."""
    prompt = np.zeros((len(sentences), length), np.int32)
    mask = np.zeros((len(sentences), length), bool)
    for row, text in enumerate(sentences):
        ids = np.asarray(encode(text))
        if len(ids) > length:
            raise ValueError(
                f"model.prompt_length: expected at least {len(ids)} for the instruction {text!r},"
                f" got {length}"
            )
        prompt[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return prompt, mask
