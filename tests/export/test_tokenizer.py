"""The tokenizer that travels gives the ids of `tokenizers`: every kind of model our backbones have,
and refusals.
"""

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vla_jax.export import artefact
from vla_jax.robot.torch_policy import text
from vla_jax.robot.torch_policy.tokenizer import Tokenizer

PLAIN = {"before": [], "template": "{}", "after": []}
CORPUS = [
    "push the red block to the left side of the table, please",
    "move 12 green boxes; don't touch the one that's open (2.5 kg)",
    "상자를 왼쪽으로 밀어 주세요", "빨간 블록을 들어 올려", "café naïve",
] * 3  # fmt: skip
ADDED = ["<image>", "<|endofchunk|>"]


def gemma():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *spelled])
    )
    body = json.loads(made.to_str())
    body["added_tokens"] = body["added_tokens"][:1]  # bytes are pieces, not words of their own
    return Tokenizer.from_str(json.dumps(body))


def llama():
    from tokenizers import Tokenizer, models, normalizers, trainers

    made = Tokenizer(models.BPE(fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"]))
    return made


def metaspace():
    from tokenizers import pre_tokenizers

    made = llama()
    body = json.loads(made.to_str())
    body["normalizer"] = None
    made = type(made).from_str(json.dumps(body))
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return made


def neox():
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in (2, 3)])
    return made


def smollm():
    """What SmolVLM2 has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return made


def qwen():
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(text.QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [*CORPUS, "<|im_start|>user\npush\n\n the block<|im_end|>\n  IT'S 12"]
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    return made


def kosmos():
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb2
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="unigram", vocab_size=140,
        normalization_rule_name="nmt_nfkc", minloglevel=2, num_threads=1, hard_vocab_limit=False,
    )  # fmt: skip
    proto = pb2.ModelProto.FromString(model.getvalue())
    made = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], 0))
    made.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    split = [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace("▁", prepend_scheme="always"),
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return made


KINDS = {make.__name__: make for make in (gemma, llama, metaspace, neox, smollm, qwen, kosmos)}
_made: dict = {}


def pair(kind):
    """The original and the reader of it."""
    if kind not in _made:
        original = KINDS[kind]()
        original.add_special_tokens(ADDED)
        _made[kind] = original, Tokenizer(json.loads(original.to_str()), PLAIN)
    return _made[kind]


SLOW = ("smollm", "qwen")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS],
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*artefact.TEXTS, *CORPUS, *ADDED, " ", "<mask>", "\n", "'S", " \n\t"]),
            st.text(max_size=8),
        )
    )
)
@example(["push ", "<mask>", "<image>", "x"])
def test_ids_are_those_of_tokenizers(kind, parts):
    original, ours = pair(kind)
    whole = "".join(parts)
    assert ours.ids(whole) == original.encode(whole, add_special_tokens=False).ids, repr(whole)


def test_other_kinds_are_refused_by_name():
    body = json.loads(pair("gemma")[0].to_str())
    for change, words in (
        (
            {"model": {"type": "WordPiece"}},
            "model.type: expected 'BPE' or 'Unigram', got 'WordPiece'",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer: .*got 'Lowercase'"),
        ({"pre_tokenizer": {"type": "Punctuation"}}, "pre_tokenizer: .*got 'Punctuation'"),
        ({"added_tokens": [{**body["added_tokens"][0], "single_word": True}]}, "single_word"),
    ):
        with pytest.raises(ValueError, match=words):
            Tokenizer({**body, **change}, PLAIN)


def test_the_prompt_stands_round_the_instruction():
    body = json.loads(pair("gemma")[0].to_str())
    ours = Tokenizer(body, {"before": [7], "template": "<image>{}<|endofchunk|>", "after": [8, 9]})
    image, end = (
        next(t["id"] for t in body["added_tokens"] if t["content"] == word) for word in ADDED
    )
    words = pair("gemma")[0].encode("push {} it", add_special_tokens=False).ids
    assert ours.encode("  push {}\n it ") == [7, image, *words, end, 8, 9]
