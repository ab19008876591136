"""Images with texts: the table of a dataset's records, and the order and content of its rows."""

import dataclasses
import io
import json
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines import images
from data_pipelines.builders.blocks_captions import CAPTIONS, scene, write_captions
from data_pipelines.datasets import user
from data_pipelines.datasets.image_text import BLOCKS_CAPTIONS, BLOCKS_QUESTIONS, IMAGE_TEXT
from data_pipelines.files import tfds_folder, tfrecord
from data_pipelines.image_text import Codec, Reader, ReaderConfig
from data_pipelines.image_text_table import open_table, problem
from tests.data_pipelines.blocks_files import edit, flip, rewrite
from tests.data_pipelines.loading import encode, same, take

EOS = 1
CONFIG = ReaderConfig(length=80, image_size=32, batch_size=6, seed=3)
TRAIN = 10


CODEC = Codec(lambda text: [2, *encode(text)], lambda text: [*encode(text), EOS])


@pytest.fixture
def root(tmp_path):
    write_captions(tmp_path, train=TRAIN, val=3)
    return tmp_path


def folder(root):
    return root / "blocks_captions" / "1.0.0"


def shards(root, split="train"):
    return sorted(folder(root).glob(f"*-{split}.*"))


def make(root, dataset=BLOCKS_CAPTIONS, split="train", rows=None, codec=CODEC, **changes):
    return Reader(
        open_table(root, dataset), split, dataclasses.replace(CONFIG, **changes), codec, rows
    )


def words(batch, row):
    """(question, answer) of a row whose texts are whole."""
    ids, target = batch.tokens[row][batch.mask[row]], batch.target[row][batch.mask[row]]
    first = int(target.argmax())
    assert not batch.target[row, batch.mask[row].sum() :].any()
    assert not batch.tokens[row, batch.mask[row].sum() :].any()
    assert (target == (np.arange(len(ids)) >= first)).all()
    assert ids[0] == 2
    assert ids[-1] == EOS
    return (
        bytes(ids[1:first].astype(np.uint8)).decode(),
        bytes(ids[first:-1].astype(np.uint8)).decode(),
    )


def pictures(count=TRAIN, split=0):
    return {scene(0, split, i)[0].tobytes(): scene(0, split, i)[1] for i in range(count)}


@pytest.mark.parametrize("dataset", [BLOCKS_CAPTIONS, BLOCKS_QUESTIONS])
@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_hold_a_picture_and_one_of_its_texts(root, dataset, split):
    known = pictures() if split == "train" else pictures(3, 1)
    reader, seen = make(root, dataset, split), set()
    assert reader.images == len(known)
    for batch in take(reader, 0, 8):
        for row in range(6):
            colours = known[batch.images[row].tobytes()]
            question, answer = words(batch, row)
            seen.add((tuple(colours), question, answer))
            if dataset is BLOCKS_CAPTIONS:
                assert question == "caption en"
                assert answer in [caption.format(*colours) for caption in CAPTIONS]
            else:
                colour = question.removeprefix("where is the ").removesuffix(" block?")
                assert ("left", "middle", "right")[colours.index(colour)] == answer
    # Not always the same text of a picture.
    assert len(seen) > len({colours for colours, _, _ in seen})


def test_every_image_comes_once_an_epoch_and_epochs_differ(root):
    reader = make(root, batch_size=5)
    batches = take(reader, 0, 4)
    epochs = [
        [image.tobytes() for batch in batches[i : i + 2] for image in batch.images] for i in (0, 2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(pictures())
    assert epochs[0] != epochs[1]


def test_rows_depend_on_seed_and_position_alone(root):
    reader = make(root)
    batches = take(reader, 0, 6)
    for position in (5, 0, 3):
        same(make(root).batch(position), batches[position])
    same(take(make(root), 4, 2), batches[4:6])
    other = make(root, seed=4)
    assert other.batch(0).images.tobytes() != batches[0].images.tobytes()
    assert reader.identity() == make(root).identity() != other.identity()
    assert reader.identity() == json.loads(json.dumps(reader.identity()))
    assert reader.identity() != make(root, BLOCKS_QUESTIONS).identity()


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_rows(root, hosts):
    shares = [take(make(root, rows=rows), 2, 3) for rows in np.arange(6).reshape(hosts, -1)]
    joined = [
        jax.tree.map(lambda *x: np.concatenate(x), *parts) for parts in zip(*shares, strict=True)
    ]
    same(joined, take(make(root), 2, 3))


def test_batches_that_are_kept_do_not_change_and_closing_stops_the_threads(root):
    stream = make(root).batches()
    kept = [next(stream) for _ in range(9)]
    copies = jax.tree.map(np.array, kept)
    for _ in range(9):
        next(stream)
    stream.close()
    same(kept, copies)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_long_answers_are_cut_and_long_questions_refused(root):
    whole, cut = make(root), make(root, length=20)
    a, b = whole.batch(1), cut.batch(1)
    np.testing.assert_array_equal(a.tokens[:, :20], b.tokens)
    assert b.mask.all()
    assert (b.tokens[:, -1] != EOS).all()
    assert b.target[:, 11:].all()
    question = "where is the green block?"
    with pytest.raises(
        ValueError,
        match=(
            r"tfrecord-\S+: record \d: objectives.image_text.length: .* at least \d+, for the"
            r" question 'w"
        ),
    ):
        make(root, BLOCKS_QUESTIONS, length=len(question) - 1).batch(0)


def test_the_table_is_made_once_and_again_when_it_must(root, monkeypatch, capsys):
    reads = []
    read = tfrecord.read
    monkeypatch.setattr(tfrecord, "read", lambda *a, **k: (reads.append(a), read(*a, **k))[1])
    first = open_table(root, BLOCKS_CAPTIONS)
    assert len(reads) == 3
    assert open_table(root, BLOCKS_CAPTIONS).digest == first.digest
    assert len(reads) == 3
    rewrite(shards(root)[0], lambda f: f.update({"captions/text": [b"something else"]}))
    changed = open_table(root, BLOCKS_CAPTIONS)
    assert len(reads) == 6 + 1  # `rewrite` reads too
    assert changed.digest != first.digest
    sidecar = next((folder(root) / ".vla_jax_index").glob("blocks_captions.*"))
    body = bytearray(sidecar.read_bytes())
    body[-1] ^= 1
    sidecar.write_bytes(body)
    assert open_table(root, BLOCKS_CAPTIONS).digest == changed.digest
    out = capsys.readouterr().out
    assert f"stale ({shards(root)[0].name}: " in out
    assert "damaged" in out
    assert "blocks_captions: split train: 10 images in" in out


def test_one_question_may_have_many_answers_and_an_image_no_text(root, capsys):
    """As VQA sets with ten annotators have it; and a picture that nobody described is left out, and
    counted.
    """

    def change(features):
        features["questions/question"] = [b"how many?"]
        features["questions/answer"] = [b"", b" ", b"three", b"3"]

    rewrite(shards(root)[0], change, records=2)
    rewrite(shards(root)[1], lambda f: f.update({"questions/answer": [b""] * 3}), records=5)
    reader = make(root, BLOCKS_QUESTIONS)
    assert reader.images == 5
    assert "5 images (5 images without a text left out)" in capsys.readouterr().out
    texts = {words(batch, row) for batch in take(reader, 0, 6) for row in range(6)}
    assert {text for text in texts if text[0] == "how many?"} == {
        ("how many?", "three"),
        ("how many?", "3"),
    }
    rewrite(shards(root)[0], lambda f: f.update({"questions/answer": []}), records=5)
    rewrite(shards(root)[0], lambda f: f.update({"questions/question": []}), records=5)
    with pytest.raises(
        ValueError, match="expected texts in 'questions/answer', all 10 records have none"
    ):
        make(root, BLOCKS_QUESTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"questions/question": [b"a", b"b"]},
            r"record 0: expected one 'questions/question', or one for each .* 2 and 3",
        ),
        ({"questions/answer": [b"\xff"] * 3}, "record 0: questions/answer: expected UTF-8"),
        (
            {"questions/answer": np.arange(3)},
            "record 0: questions/answer: expected byte strings, got numbers",
        ),
        ({"image": []}, "record 0: image: expected one encoded image, got 0"),
    ],
)
def test_wrong_records_are_named(root, change, message):
    rewrite(shards(root)[0], lambda features: features.update(change))
    with pytest.raises(
        ValueError, match=r"blocks_captions-train.tfrecord-00000-of-00002: " + message
    ):
        make(root, BLOCKS_QUESTIONS)


def test_a_picture_that_does_not_decode_is_named(root):
    for path in shards(root):
        rewrite(path, lambda features: features.update(image=[b"no picture"]), records=5)
    reader = make(root)  # pictures are decoded only when they are wanted
    with pytest.raises(
        ValueError, match=r"tfrecord-\S+: record \d: image: image: expected a whole JPEG or PNG"
    ):
        next(reader.batches())


def test_damaged_and_truncated_files_are_refused(root):
    path, other = shards(root)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"00000-of-00002: record 4 is damaged: .*cut short"):
        make(root)
    path.write_bytes(whole)
    tfrecord.write(path, [record.data for record in tfrecord.read(path)][:-1])
    with pytest.raises(
        ValueError, match=r"00000-of-00002: expected 5 records \(dataset_info.json\), got 4"
    ):
        make(root)
    path.write_bytes(whole)
    flip(other, 1)
    with pytest.raises(ValueError, match=r"00001-of-00002: record 1 is damaged: the checksum"):
        make(root)


def test_files_that_change_under_a_reader_are_noticed(root):
    reader = make(root)
    for path in shards(root):
        body = bytearray(path.read_bytes())
        for record in list(tfrecord.read(path)):
            body[record.offset + 60] ^= 1
        path.write_bytes(body)
    with pytest.raises(
        ValueError, match=r"record \d is damaged: its data are not those the table was made from"
    ):
        reader.batch(0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {"answer": "caption"},
            (
                "promises the answer as the text feature 'caption', got no such feature; the"
                " records have capt"
            ),
        ),
        (
            {"image": "captions/text"},
            "promises the image as the image feature 'captions/text', got a Text",
        ),
        ({"question": "image"}, "promises the question as the text feature 'image', got a Image"),
        (
            {"held_out": "validation"},
            r"expected a split 'validation' \(blocks_captions\), got train, val",
        ),
        (
            {"version": "2.0.0"},
            (
                r"image_text.dataset: blocks_captions: no .*2.0.0/dataset_info.json; python -m"
                r" data_pipe"
            ),
        ),
    ],
)
def test_wrong_descriptions_are_refused(root, dataset, message):
    with pytest.raises(ValueError, match=message):
        make(root, dataclasses.replace(BLOCKS_CAPTIONS, **dataset))


def test_missing_files_name_the_command(root, tmp_path):
    assert problem(str(root), BLOCKS_CAPTIONS) == ""
    line = problem("/nowhere", IMAGE_TEXT["coco_captions"])
    assert (
        line == "coco_captions: no /nowhere/coco_captions/2014/1.1.0/dataset_info.json; "
        "tfds build coco_captions --data_dir=/nowhere"
    )


def test_coco_as_tfds_lays_it_out(tmp_path):
    """A sequence of dictionaries, JPEGs of any size, a config in the path."""
    folder = tmp_path / "coco_captions" / "2014" / "1.1.0"
    folder.mkdir(parents=True)
    core = "tensorflow_datasets.core.features."
    string = {
        "pythonClassName": f"{core}scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "string", "encoding": "none"},
    }
    number = {
        "pythonClassName": f"{core}scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
    }
    inner = {"featuresDict": {"features": {"text": string, "id": number}}}
    features = {
        "image": {
            "pythonClassName": f"{core}image_feature.Image",
            "image": {"shape": {"dimensions": ["-1", "-1", "3"]}},
        },
        "image/id": number,
        "captions": {
            "pythonClassName": f"{core}sequence_feature.Sequence",
            "sequence": {"feature": inner},
        },
    }
    (folder / tfds_folder.FEATURES).write_text(json.dumps({"featuresDict": {"features": features}}))
    splits = [{"name": name, "shardLengths": ["1"]} for name in ("train", "val", "restval")]
    (folder / tfds_folder.INFO).write_text(json.dumps({"name": "coco_captions", "splits": splits}))
    jpeg = io.BytesIO()
    Image.fromarray(np.full((20, 50, 3), 90, np.uint8)).save(jpeg, "JPEG")
    record = {
        "image": [jpeg.getvalue()],
        "image/id": np.array([7]),
        "captions/text": [b"A grey wall."],
        "captions/id": np.array([8]),
    }
    for split in ("train", "val", "restval"):
        tfrecord.write(
            folder / f"coco_captions-{split}.tfrecord-00000-of-00001", [tfrecord.encode(record)]
        )
    reader = make(tmp_path, IMAGE_TEXT["coco_captions"], batch_size=2, image_size=16)
    batch = reader.batch(0)
    assert words(batch, 1) == ("caption en", "A grey wall.")
    np.testing.assert_array_equal(batch.images[0], images.decode(jpeg.getvalue(), 16))


OWN = """
from data_pipelines.datasets.image_text import ImageTextDataset
mine = ImageTextDataset(
    "mine", "1.0.0", "image", "questions/answer", "ask me", tfds_name="blocks_captions",
    held_out="val",
)
IMAGE_TEXT = {"mine": mine}
"""


def test_a_file_of_the_users_describes_one_too(root, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = user.image_text(str(tmp_path / "own.py"))
    assert user.load(str(tmp_path / "own.py")) == ({}, {})  # such a file needs no robots
    assert words(make(root, own["mine"]).batch(0), 0)[1] in ("left", "middle", "right")
    (tmp_path / "own.py").write_text(OWN.replace('"mine": ', '"clevr": '))
    with pytest.raises(
        ValueError,
        match=r"IMAGE_TEXT\['clevr'\]: expected .* of that name, got ImageTextDataset 'mine'",
    ):
        user.image_text(str(tmp_path / "own.py"))
    (tmp_path / "own.py").write_text(OWN.replace("mine", "clevr"))
    with pytest.raises(ValueError, match=r"clevr: these names are ours"):
        user.image_text(str(tmp_path / "own.py"))
    (tmp_path / "own.py").write_text("")
    assert user.image_text(str(tmp_path / "own.py")) == {}


def test_features_that_changed_place_are_found(root):
    edit(
        folder(root) / tfds_folder.FEATURES,
        lambda body: body["featuresDict"]["features"].pop("captions"),
    )
    with pytest.raises(
        ValueError, match="got no such feature; the records have image, questions/answer"
    ):
        make(root)


def test_which_text_comes_is_drawn_anew_at_every_position(root):
    one = make(root, batch_size=1)
    starts = {words(one.batch(position), 0)[1].split()[0] for position in range(12)}
    assert starts == {"from", "the"}  # the first words of both captions
