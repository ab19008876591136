"""What stands in a batch: the numbers, words and pixels of given windows, put together from columns
and open visits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from data_pipelines import windows
from data_pipelines.buffers import Buffers
from data_pipelines.config import ALIVE, LoaderConfig
from data_pipelines.frames import Pool, Span
from data_pipelines.index import Split
from data_pipelines.mixture import Member
from vla_jax.actions import places
from vla_jax.types import Batch, Future, ObservationSizes, new_observation


class Assembler:
    """Makes batches of the windows of a mixture."""

    def __init__(
        self,
        members: list[Member],
        config: LoaderConfig,
        encode: Callable[[str], np.ndarray],
        target: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        """Encodes all instructions. Arguments as of `Loader`.

        Raises ValueError when the prompt length or the future do not fit the data.
        """
        self._members, self._config = members, config
        self._splits = [member.index.splits[member.split] for member in members]
        _check_future(config.future, self._splits)
        self._prompts = _prompts(
            [split.sentences for split in self._splits], encode, config.prompt_length
        )
        self._targets = None if target is None else _Targets(target, self._splits[0].sentences[0])
        t, m = config.window, len(config.future)
        self._images = [Buffers((t, size, size, 3), ALIVE) for size in config.image_size]
        self._futures = [Buffers((t, m, size, size, 3), ALIVE) for size in config.image_size]
        specs = [(member.action_spec.names, member.state_spec.names) for member in members]
        actions, state = (
            given or tuple(dict.fromkeys(name for names in every for name in names))
            for given, every in zip(
                (config.action_names, config.state_names), zip(*specs, strict=True), strict=True
            )
        )
        self._dims = len(actions), len(state)
        self._robots = [self._robot(member, actions, state) for member in members]

    def _robot(self, member: Member, actions: tuple[str, ...], state: tuple[str, ...]) -> "_Robot":
        """Raises ValueError for dims, or a dataset, that the policy does not know."""
        dataset, known = member.index.dataset, self._config.embodiments
        if known and dataset.name not in known:
            raise ValueError(
                f"model.embodiments: expected {dataset.name} among {', '.join(known)}; give"
                " --config.model.embodiments=() to have them from the data"
            )
        try:
            return _Robot(
                np.array(places(member.action_spec.names, actions), int),
                np.array(places(member.state_spec.names, state), int),
                windows.motion(dataset),
                known.index(dataset.name) if known else 0,
            )
        except ValueError as error:
            raise ValueError(f"{dataset.name}: {error}") from None

    def empty(self, b: int) -> Batch:
        """Arrays for b windows, to be filled in."""
        config = self._config
        t, k, (d, p) = config.window, config.chunk, self._dims
        cameras, m = len(config.cameras), len(config.future)
        sizes = ObservationSizes(
            b=b,
            t=t,
            p=p,
            l=self._prompts[0][0].shape[1],
            d=d,
            image_size=tuple(config.image_size),
            past_action=config.past_action,
            sensors={each.name: (each.shape, each.dtype) for each in config.sensors},
        )
        images = iter(self._images)

        def make(shape: tuple[int, ...], dtype: type) -> np.ndarray:
            # Cameras are asked for first, then sensors, of which some are pictures too.
            buffers = next(images, None) if dtype is np.uint8 else None
            return np.zeros(shape, dtype) if buffers is None else buffers.take(b)

        batch = Batch(
            new_observation(sizes, make),
            np.zeros((b, t, k, d), np.float32),
            np.zeros((b, t, k, d), bool),
            np.empty(b, np.int32),
        )
        if config.future:
            future = tuple(buffers.take(b) for buffers in self._futures)
            batch = batch._replace(future=Future(future, np.empty((b, t, m, cameras), bool)))
        if self._targets is not None:
            batch = batch._replace(text_target=np.empty((b, self._targets.width), np.float32))
        return batch

    def fill_numbers(
        self,
        batch: Batch,
        dataset_id: int,
        rows: Int64[np.ndarray, " r"],
        newest: Int64[np.ndarray, " r"],
        draws: Int64[np.ndarray, " r"] | None = None,
    ) -> tuple[Int64[np.ndarray, "r t"], Int64[np.ndarray, "r t m"]]:
        """Fills in all but the images of `rows` of a batch: windows of one dataset, whose newest
        steps are `newest` in its columns. Each is told what its newest step is; `draws` choose
        among alternatives, None takes the first.

        Returns the steps of their frames in the dataset's columns, and those of the frames in their
        future.
        """
        member, split, config = self._members[dataset_id], self._splits[dataset_id], self._config
        robot = self._robots[dataset_id]
        episode = np.searchsorted(split.first, newest, side="right") - 1
        # Episodes without steps begin where the next one does; `right` finds the last of them.
        first, length = (
            split.first[episode].astype(np.int64),
            split.length[episode].astype(np.int64),
        )
        steps = windows.steps(newest - first, length, config.window, config.chunk, config.future)
        frames = first[:, None] + steps.frames
        measured = np.asarray(split.state)[frames]
        actions = windows.actions(split.actions, first, steps, robot.motion)
        where = np.ix_(rows, np.arange(config.window), np.arange(config.chunk), robot.actions)
        batch.actions[where] = member.action_spec.normalise(actions, measured[:, :, None])
        batch.action_mask[where] = steps.action_mask[..., None]
        state = member.state_spec.normalise(measured)
        batch.obs.proprio[np.ix_(rows, np.arange(config.window), robot.state)] = state
        batch.obs.proprio_mask[np.ix_(rows, robot.state)] = True
        if batch.obs.action_dims is not None and batch.obs.embodiment is not None:
            batch.obs.action_dims[np.ix_(rows, robot.actions)] = True
            batch.obs.embodiment[rows] = robot.number
        has = np.array([slot in split.frames for slot in config.cameras])
        batch.obs.image_mask[rows] = has
        prompt, mask = self._prompts[dataset_id]
        sentence = split.told(newest, episode, draws)
        batch.obs.prompt[rows], batch.obs.prompt_mask[rows] = prompt[sentence], mask[sentence]
        batch.obs.step_mask[rows] = steps.step_mask
        batch.dataset_id[rows] = dataset_id
        if batch.obs.past_action is not None and batch.obs.past_action_mask is not None:
            past, mask = windows.past_actions(
                split.actions, first, steps, member.action_spec, measured
            )
            batch.obs.past_action[np.ix_(rows, np.arange(config.window), robot.actions)] = past
            batch.obs.past_action_mask[rows] = mask
        for sensor in config.sensors:
            if sensor.name in split.readings:
                spec = member.sensor_specs.get(sensor.name)
                values = sensor.values(np.asarray(split.readings[sensor.name])[frames], lead=2)
                seen = sensor.seen(values, None if spec is None else spec.normalise)
                for out, own in zip(batch.obs.sensors[sensor.name], seen, strict=True):
                    out[rows] = own
        if batch.future is not None:
            batch.future.mask[rows] = steps.future_mask[..., None] & has
        if self._targets is not None and batch.text_target is not None:
            batch.text_target[rows] = [self._targets.of(split.sentences[i]) for i in sentence]
        return frames, first[:, None, None] + steps.future

    def fill_images(
        self,
        batch: Batch,
        rows: Int64[np.ndarray, " r"],
        frames: tuple[np.ndarray, np.ndarray],
        pool: Pool,
        visit: int,
    ) -> None:
        """Copies the pixels of `rows`, all of one open visit, from what `fill_numbers`
        says they are, and the readings of sensors that come from files too.
        """
        span = pool.span(visit)
        for sensor in self._config.sensors:
            reading = pool.reading(visit, sensor)
            if reading is not None:
                places = _places(span, frames[0]) if len(reading.mask) > 1 else 0 * frames[0]
                for out, own in zip(batch.obs.sensors[sensor.name], reading, strict=True):
                    out[rows] = own[places]
        self._copy(batch.obs.images, rows, _places(span, frames[0]), pool, visit)
        if batch.future is not None:
            self._copy(batch.future.images, rows, _places(span, frames[1]), pool, visit)
            for camera, images in enumerate(batch.future.images):
                for row in rows:
                    images[row][~batch.future.mask[row, ..., camera]] = 0

    def _copy(
        self, images: tuple[Any, ...], rows: np.ndarray, places: np.ndarray, pool: Pool, visit: int
    ) -> None:
        """images[camera][rows] = the frames of the visit that stand at `places`, or black without
        the camera.
        """
        for camera, out in enumerate(images):
            decoded = pool.frames(visit, camera)
            for row, place in zip(rows, places, strict=True):
                if decoded is None:
                    out[row] = 0
                else:
                    # "clip" lets take write into `out` without a copy; what is out of range is
                    # masked
                    decoded.take(place, axis=0, out=out[row], mode="clip")


class _Robot(NamedTuple):
    """Where a dataset's dims stand among the policy's, which of its own action dims are 0 at rest,
    and its number among config.embodiments.
    """

    actions: Int64[np.ndarray, " d"]
    state: Int64[np.ndarray, " p"]
    motion: list[int]
    number: int


class _Targets:
    """The embeddings of sentences, each computed when it is first met."""

    def __init__(self, embed: Callable[[str], np.ndarray], example: str) -> None:
        self._embed, self._known = embed, dict[str, np.ndarray]()
        self.width = len(self.of(example))

    def of(self, sentence: str) -> Float32[np.ndarray, " e"]:
        """The embedding. Raises ValueError when it is not what a batch can hold."""
        if sentence not in self._known:
            target = np.asarray(self._embed(sentence))
            shape = (self.width,) if self._known else target.shape[:1]
            fits = target.dtype == np.float32 and target.shape == shape
            if not fits or not np.isfinite(target).all():
                raise ValueError(
                    f"target: expected finite float32 of shape {shape or '[e]'} for"
                    f" {sentence!r}, got {target.dtype} of shape {target.shape}; mend the function"
                    " given to Loader"
                )
            self._known[sentence] = target
        return self._known[sentence]


def _places(span: Span, frames: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
    """Where frames stand among the steps of a span; anywhere for one that is not among them."""
    return frames - span.start if not span.ahead else np.searchsorted(span.steps(), frames)


def _check_future(offsets: tuple[int, ...], splits: list[Split]) -> None:
    longest = max(int(split.length.max()) for split in splits)
    if any(not 1 <= offset < longest for offset in offsets) or len(set(offsets)) != len(offsets):
        raise ValueError(
            "objectives.forward.offsets: expected different numbers of steps from 1 to"
            f" {longest - 1} (the longest episode has {longest}), got {offsets}"
        )


def _prompts(
    sentences: list[tuple[str, ...]], encode: Callable[[str], np.ndarray], length: int | None
) -> list[tuple[Int32[np.ndarray, "n l"], Bool[np.ndarray, "n l"]]]:
    """Token ids of every dataset's n distinct sentences, padded with zeros on the right, and their
    masks. `length` as LoaderConfig.prompt_length.
    """
    encoded = [[np.asarray(encode(text)) for text in texts] for texts in sentences]
    longest, text = max(
        (len(ids), text)
        for texts, rows in zip(sentences, encoded, strict=True)
        for text, ids in zip(texts, rows, strict=True)
    )
    if length is not None and longest > length:
        raise ValueError(
            f"model.prompt_length: expected at least {longest} for the instruction {text!r}, got"
            f" {length}"
        )
    width = longest if length is None else length
    prompts = []
    for rows in encoded:
        prompt, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
        for row, ids in enumerate(rows):
            prompt[row, : len(ids)], mask[row, : len(ids)] = ids, True
        prompts.append((prompt, mask))
    return prompts
