"""Writes the recorded episodes of a dataset as RLDS, as TFDS lays it out."""

from collections.abc import Iterator

import numpy as np

from data_pipelines import images
from data_pipelines.builders import recorded, rlds_files
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import formats, tfrecord
from vla_jax.progress import Progress

SHARDS = 16  # files of a split, at most


class ToRlds:
    """An RLDS dataset while it is written."""

    def __init__(
        self, dataset: Dataset, target: Dataset, out: str, loss: recorded.Loss | None
    ) -> None:
        """`target` describes what is written; without `loss` decoded frames become PNGs, else
        JPEGs, whose loss it measures.
        """
        self._dataset, self._target, self._out, self._loss = dataset, target, out, loss
        self._features: dict[str, rlds_files.Feature] = {}

    def write(self, whole: dict[str, list[formats.Shard]], progress: Progress) -> None:
        """All of it."""
        splits = []
        for split, shards in whole.items():
            groups = np.array_split(np.arange(len(shards)), min(SHARDS, len(shards)))
            examples = [self._examples([shards[i] for i in group], progress) for group in groups]
            splits.append(
                rlds_files.write_split(self._out, self._target.tfds_name, split, examples)
            )
        about = f"{self._dataset.name}, written by data_pipelines.convert"
        features = rlds_files.episode(self._nested(self._features, ""))
        rlds_files.finish(self._out, about, features, splits)

    def _examples(self, shards: list[formats.Shard], progress: Progress) -> Iterator[bytes]:
        for shard in shards:
            for raw in recorded.episodes(shard, self._dataset):
                if raw.words:
                    yield self._example(raw)
            progress.add(shard.file.size)

    def _example(self, raw: recorded.Raw) -> bytes:
        """An episode's record."""
        body: dict[str, list[bytes] | np.ndarray] = {**rlds_files.flags(len(raw.words))}
        for key, values in raw.columns.items():
            name, whole = key.replace(".", "/"), values.dtype.kind != "f"
            self._check_exact(key, values)
            kind = "int64" if whole else "float32"
            self._features[name] = rlds_files.tensor(kind, *values.shape[1:])
            body[f"steps/{name}"] = values.astype(kind)
        for i, key in enumerate(self._target.languages):
            said = [words[i] if i < len(words) else "" for words in raw.words]
            body[f"steps/{key}"] = [text.encode() for text in said]
            self._features[key] = rlds_files.text()
        for slot in raw.stored:
            key = self._target.cameras[slot]
            body[f"steps/{key}"] = self._pictures(raw, slot)
        return tfrecord.encode(body)

    def _pictures(self, raw: recorded.Raw, slot: str) -> list[bytes]:
        """The frames of a camera; those that are encoded already as they are."""
        kind = "PNG" if self._loss is None else "JPEG"
        written = []
        for picture in raw.stored[slot]():
            swapped = not isinstance(picture, bytes) and slot in self._dataset.bgr
            pixels = images.raw(picture, bgr=True) if swapped else picture
            written.append(recorded.encoded(pixels, kind))
            if self._loss is not None and not isinstance(pixels, bytes):
                self._loss.add(slot, pixels, images.raw(written[-1]))
        stored = "png" if written[0].startswith(b"\x89PNG") else "jpeg"
        feature = rlds_files.image(stored, *images.size(written[0]))
        self._features.setdefault(self._target.cameras[slot], feature)
        return written

    def _check_exact(self, key: str, values: np.ndarray) -> None:
        """Raises ValueError for numbers that TFRecord (float32, int64) would change."""
        if values.dtype.kind == "f" and values.dtype.itemsize > 4:
            same = values.astype(np.float32) == values
        elif values.dtype == np.uint64:
            same = values < 2**63
        else:
            return
        if not same.all():
            got = values[~same].flat[0]
            raise ValueError(
                f"{self._dataset.name}: {key}: expected numbers that fit into float32 or int64, all"
                f" that TFRecord has, got {got!r} ({values.dtype}); write the column so first, if"
                " rounded numbers will do"
            )

    def _nested(
        self, features: dict[str, rlds_files.Feature], at: str
    ) -> dict[str, rlds_files.Feature]:
        """A tree of folders from keys with slashes. Raises ValueError where one key is both."""
        tree: dict[str, rlds_files.Feature] = {}
        heads = dict.fromkeys(key.partition("/")[0] for key in features)
        for head in heads:
            inner = {
                key.partition("/")[2]: value
                for key, value in features.items()
                if key.startswith(f"{head}/")
            }
            if inner and head in features:
                raise ValueError(
                    f"{self._dataset.name}: expected no feature to be a part of another's key, got"
                    f" {at}{head} and {at}{head}/{next(iter(inner))}; leave one out of the"
                    " description"
                )
            folder = self._nested(inner, f"{at}{head}/") if inner else {}
            tree[head] = rlds_files.folder(folder) if inner else features[head]
        return tree
