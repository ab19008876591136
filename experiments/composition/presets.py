"""The words behind a config file's colon, the same in every file: `--config=FILE.py:tiny,gpt,lora`.
(finetune.py goes on from a policy whose size and head are given: it takes lora alone.)

tiny                            the same path in minutes on a CPU: random weights, the embedded
                                block-pushing data
small, base                     PaliGemma of 30 M (128 px) and 105 M (224 px) parameters, trained
                                from nothing on your data: overnight on a CPU, on one GPU
lora                            adapters in a frozen backbone
gpt, attention, flow, discrete, fast, oft, expert
                                another policy head than the LSTM
"""

from ml_collections import ConfigDict

# Head -> its blocks: GPT as in RoboVLMs; those that write tokens have no parameters, expert has the
# backbone's.
HEADS = {
    "gpt": 8, "attention": 1, "flow": 4, "discrete": 0, "fast": 0, "oft": 2, "expert": 0
}  # fmt: skip
WRITERS = {"discrete", "fast"}
# Width of the head expert: half the backbone's, as pi0 has it.
EXPERT = {"tiny": 32, "small": 192, "base": 384}
SIZES = {"small": "small", "base": "100m"}  # word -> variant


def parse(arg: str, own: tuple[str, ...] = ()) -> frozenset[str]:
    """The words in `arg`, where commas join them. `own` are those of the file.

    Raises ValueError for an unknown word, and for two heads or sizes.
    """
    words = frozenset(word.strip() for word in arg.split(",") if word.strip())
    sizes = words & {"tiny", *SIZES}
    unknown = words - {*own, "tiny", "lora", *SIZES, *HEADS}
    if unknown or len(sizes) > 1 or len(words & HEADS.keys()) > 1:
        several = "".join(f"'{word}', " for word in own)
        raise ValueError(
            f"--config=FILE.py:WORDS: expected {several}'lora', one of tiny, {', '.join(SIZES)} and"
            f" one of {', '.join(HEADS)} at most, got {arg!r}"
        )
    return words


def apply(config: ConfigDict, words: frozenset[str]) -> None:
    """Changes the config as the words of every file say; a file's own words are its own affair."""
    if "lora" in words:
        config.lora.rank = 16
        config.optim.lr = 5e-4  # OpenVLA's for adapters, which start at zero
    if "tiny" in words:
        _tiny(config)
    for size in words & SIZES.keys():
        _from_nothing(config, size)
    for head in words & HEADS.keys():
        config.model.head = head
        config.model.head_layers = min(2, HEADS[head]) if words & {"tiny", *SIZES} else HEADS[head]
    if "expert" in words:
        config.model.head_hidden = next((EXPERT[size] for size in words & EXPERT.keys()), 1024)
    if words & WRITERS:
        # As in RoboVLMs; these heads cannot fuse time, so the backbone must.
        config.model.history = "interleaved"
    if "oft" in words:
        # As in OpenVLA-OFT, but for its placeholders: one a step here, one a number there
        # (model.readouts).
        config.model.history, config.model.window = "one_step", 1
        config.loss.kind = "l1"


def _from_nothing(config: ConfigDict, size: str) -> None:
    """A PaliGemma that fits one device: random weights and a tokenizer of the data's own words."""
    if config.model.backbone != "paligemma":
        raise ValueError(
            f"--config=FILE.py:{size}: expected a config of PaliGemma, got {config.model.backbone}"
        )
    config.steps = 20_000
    config.batch_size = 32 if size == "small" else 128
    config.accum = 1
    config.model.variant = SIZES[size]
    config.model.weights = "none"
    config.model.tokenizer = "train"
    config.model.prompt_length = 32
    config.model.image_size = 128 if size == "small" else 224
    config.model.window = 2
    config.model.head_hidden = 512
    config.model.head_layers = 2
    config.model.head_mlp = (512, 256)
    config.model.remat = "none"
    # Nothing is there that a small rate would keep.
    config.optim.lr = 3e-4
    config.optim.schedule = "half_cosine"
    config.optim.min_lr_scale = 0.05
    config.optim.warmup_steps = 1_000
    config.optim.warmup_epochs = 0.0


def as_they_are(config: ConfigDict) -> None:
    """Nothing is done to pictures in training."""
    config.augment.crop_scale = (1.0, 1.0)
    config.augment.brightness = config.augment.hue = 0.0
    config.augment.contrast = config.augment.saturation = (1.0, 1.0)
    config.augment.shift = ()


def _tiny(config: ConfigDict) -> None:
    """Small enough for a laptop, the same code path: random weights, the embedded data, which has
    both cameras.
    """
    config.steps = 1_000
    config.batch_size = 32
    config.accum = 1
    config.log_every = 20
    config.eval_every = 250
    config.save_every = 250
    config.eval_batches = 8
    config.data.root = "runs/demo/data"
    config.data.mixture = "blocks"
    config.data.normalise = ("q99",)
    config.data.ram_budget = 256 * 2**20
    as_they_are(config)  # the demo's pictures are 32 pixels wide, and its words name colours
    config.objectives.forward.offsets = (3,)
    config.objectives.forward.width = 128
    config.objectives.forward.patch = 8
    config.model.variant = "tiny"
    config.model.weights = "none"
    config.model.tokenizer = "train"
    config.model.prompt_length = 32
    config.model.image_size = 32
    config.model.window = 2
    config.model.chunk = 4
    config.model.head_hidden = 128
    config.model.head_layers = 1
    config.model.head_mlp = (128, 64)
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.layers = "unroll"
    config.optim.lr = 1e-3
    config.optim.schedule = "half_cosine"
    config.optim.min_lr_scale = 0.05
    config.optim.warmup_steps = 50
    config.optim.warmup_epochs = 0.0
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 1
