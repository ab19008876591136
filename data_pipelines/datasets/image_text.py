"""Datasets of images with texts about them, for co-training: TFDS datasets of single examples, not
of episodes.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ImageTextDataset:
    """Description of one dataset. Feature keys are those of a record, e.g. "captions/text".

    Attributes:
        name: our word for it.
        version: TFDS version.
        image: feature key of the encoded image.
        answer: feature key of the texts that are to be predicted: one, or a sequence of which one
            is drawn each time.
        download: command that brings it under a data root, with {root} where that goes.
        question: feature key of what stands before an answer: one for all, or one for each. "":
            `prompt` does.
        prompt: what stands before every answer where no question is recorded.
        split: trained on.
        held_out: evaluated on.
        tfds_name: folder, with the TFDS config if it has one; `name` when left out. The files are
            in root/tfds_name/version.
        revision: raise it when the files of a version change.
    """

    name: str
    version: str
    image: str
    answer: str
    download: str
    question: str = ""
    prompt: str = "caption en"  # what PaliGemma was pretrained with
    split: str = "train"
    held_out: str = "validation"
    tfds_name: str = ""
    revision: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "tfds_name", self.tfds_name or self.name)
        if self.question and self.question == self.answer:
            raise ValueError(
                f"{self.name}: expected question and answer of different features, got"
                f" {self.answer!r}"
            )


def _build(name: str) -> str:
    return f"tfds build {name} --data_dir={{root}}"


# The keys of the first two are those of tensorflow_datasets 4.9.10's builders.
COCO = ImageTextDataset(
    name="coco_captions",
    tfds_name="coco_captions/2014",
    version="1.1.0",
    image="image",
    answer="captions/text",
    held_out="val",
    download=_build("coco_captions"),
)
CLEVR = ImageTextDataset(
    name="clevr",
    version="3.1.0",
    image="image",
    question="question_answer/question",
    answer="question_answer/answer",
    download=_build("clevr"),
)
BLOCKS_CAPTIONS = ImageTextDataset(
    name="blocks_captions",
    version="1.0.0",
    image="image",
    answer="captions/text",
    held_out="val",
    download="python -m data_pipelines.builders.blocks_captions --out {root}",
)
# The same files: what is asked about the pictures.
BLOCKS_QUESTIONS = dataclasses.replace(
    BLOCKS_CAPTIONS,
    name="blocks_questions",
    tfds_name="blocks_captions",
    question="questions/question",
    answer="questions/answer",
)

IMAGE_TEXT = {dataset.name: dataset for dataset in (COCO, CLEVR, BLOCKS_CAPTIONS, BLOCKS_QUESTIONS)}
