"""PaliGemma on Open X-Embodiment: the RoboVLMs recipe.

    python -m experiments.pretrain --config=oxe_paligemma.py           # PaliGemma-3B, 224 px, window 8, chunk 10, LSTM
    python -m experiments.pretrain --config=oxe_paligemma.py:gpt       # another head: gpt, attention, flow, discrete
    python -m experiments.pretrain --config=oxe_paligemma.py:lora      # adapters in a frozen backbone; also :gpt,lora
    python -m experiments.pretrain --config=oxe_paligemma.py:tiny      # the same path in minutes on 2 CPU cores
    python -m experiments.pretrain --config=oxe_paligemma.py:tiny,flow

The 3B job needs HF weights (model.weights) and the datasets of data.mixture under data.root; without them it stops in
seconds and says what is missing. `--config.model.weights=none --dry_run` builds it abstractly on any machine.
"""

from ml_collections import ConfigDict, FieldReference

HEADS = {"gpt": 8, "attention": 1, "flow": 4, "discrete": 0}  # blocks


def get_config(arg: str = "") -> ConfigDict:
    """The full config. `arg` is "" (3B, LSTM) or words joined by commas: "tiny", "lora", and a head."""
    words = [word for word in arg.split(",") if word]
    heads = [word for word in words if word in HEADS]
    if set(words) - {"tiny", "lora", *HEADS} or len(heads) > 1:
        raise ValueError(
            f"oxe_paligemma.py: expected 'tiny', 'lora' and one of {', '.join(HEADS)} at most, got {arg!r}"
        )
    config = ConfigDict()
    config.steps = 50_000
    config.batch_size = 512  # windows, over all hosts
    config.accum = 1
    config.seed = 123
    config.log_every = 50
    config.eval_every = 1_000
    config.save_every = 1_000
    config.eval_batches = 16
    config.keep_checkpoints = 3
    config.nan_patience = 10  # consecutive skipped steps before the run stops

    config.data = ConfigDict()
    config.data.root = "~/tensorflow_datasets"  # where TFDS keeps <name>/<version>; a path or a URL (gs://...)
    # A mixture, a dataset, or in a config file (("bridge", 1.0), ...): `object` admits both kinds.
    config.data.mixture = FieldReference("oxe_magic_soup", field_type=object)
    config.data.datasets = ""  # your own Python file that describes more datasets
    config.data.quarantine = ""  # a reviewed list of episodes to leave out (index_data --validate writes one)
    config.data.normalise = ("q99",)  # ("q99", ("bounds", -0.65, 0.65)) is RoboVLMs' double normalisation
    config.data.ram_budget = 16 * 2**30  # bytes of decoded frames over all hosts; more mixes more episodes
    config.data.windows_per_visit = 64  # windows decoded together; fewer mix better and decode more
    config.data.blank_instruction = False  # ablation: every instruction becomes ""

    config.model = ConfigDict()
    config.model.backbone = "paligemma"
    config.model.variant = "3b-pt-224"
    config.model.weights = "weights/paligemma-3b-pt-224"  # HF folder, .npz, checkpoints, "none"
    config.model.start = (
        ""  # checkpoints of a run or an import: all its parameters, the head's too, in place of weights
    )
    config.model.allow_missing = ()  # patterns of names that may be absent from the weights
    config.model.tokenizer = ""  # folder; "" = the weights' own; "train" = a small one from the data's instructions
    config.model.prompt_length = 48
    config.model.image_size = 224
    config.model.cameras = ("primary",)
    config.model.window = 8
    config.model.chunk = 10
    config.model.action_dim = 7
    config.model.history = "head"  # head, interleaved, one_step: see vla_jax/model.py
    config.model.layout = "prefix"  # prefix, robovlms: see vla_jax/sequence.py
    config.model.readouts = 1  # action query tokens per frame
    config.model.head = "lstm"
    config.model.head_hidden = 1024
    config.model.head_layers = 4
    config.model.head_mlp = (1024, 512, 256)
    config.model.head_attention = 8  # heads of attention in the heads gpt, attention and flow
    config.model.bins = 256  # of each number, for the head discrete
    config.model.temperature = 0.0  # of its decoding; 0 takes the likeliest token
    config.model.proprio = False  # the robot's state as a token before the readouts
    config.model.past_action = False  # the action before each frame as a token before the readouts
    config.model.past_action_hidden = 0.5  # share of frames that do not see it in training, against copying
    config.model.resampler = ConfigDict()  # fewer visual tokens per image; depth 0 = off, RoboVLMs has 6
    config.model.resampler.depth = 0
    config.model.resampler.heads = 8
    config.model.resampler.dim_head = 64
    config.model.resampler.latents = 64
    config.model.dtype = "bfloat16"  # compute; master parameters are float32
    config.model.remat = "full"
    config.model.layers = "scan"

    # RoboVLMs' and OpenVLA's on OXE. CALVIN: all of this off, and shift = (10, 4) for the static and the wrist camera.
    config.augment = ConfigDict()
    config.augment.crop_scale = (0.9, 0.9)  # share of the area
    config.augment.crop_ratio = (1.0, 1.0)
    config.augment.brightness = 0.2
    config.augment.contrast = (0.8, 1.2)
    config.augment.saturation = (0.8, 1.2)
    config.augment.hue = 0.05
    config.augment.shift = ()  # pixels, one number per camera
    config.augment.flip = False  # True is refused: it would need mirrored actions

    config.loss = ConfigDict()
    config.loss.kind = "huber"
    config.loss.delta = 1.0
    config.loss.arm = 1.0
    config.loss.gripper = 0.01

    # Auxiliary tasks; a weight of 0 leaves a task out of the program, its data included.
    config.objectives = ConfigDict()
    config.objectives.forward = ConfigDict()  # prediction of future frames
    config.objectives.forward.weight = 0.0
    config.objectives.forward.offsets = (10,)  # how many steps ahead
    config.objectives.forward.tokens = 8  # query tokens per future frame and camera
    config.objectives.forward.width = 512  # of the decoder
    config.objectives.forward.depth = 2
    config.objectives.forward.patch = 16  # pixels
    config.objectives.caption = ConfigDict()  # the instruction from the images
    config.objectives.caption.weight = 0.0
    config.objectives.image_text = ConfigDict()  # co-training on images with texts; RoboVLMs: 0.05, discrete head 0.5
    config.objectives.image_text.weight = 0.0
    config.objectives.image_text.dataset = ""  # a TFDS dataset under data.root
    config.objectives.image_text.length = 128  # tokens of question and answer
    config.objectives.text_align = ConfigDict()  # readouts near CLIP's embedding of the instruction; RoboVLMs: 0.05
    config.objectives.text_align.weight = 0.0
    config.objectives.text_align.width = 768  # of that embedding
    config.objectives.text_align.clip = "weights/clip-vit-large-patch14"  # Hugging Face folder with its tokenizer

    config.lora = ConfigDict()  # low-rank adapters in the backbone, which is then frozen; rank 0 = off
    config.lora.rank = 0
    config.lora.alpha = 16.0
    config.lora.dropout = 0.05
    config.lora.targets = ("backbone/*/attn/*", "backbone/*/mlp/*")

    config.optim = ConfigDict()
    config.optim.lr = 2e-5
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip = 1.0
    config.optim.schedule = "constant"
    config.optim.min_lr_scale = 0.0  # where half_cosine ends, as a fraction of lr
    config.optim.warmup_steps = 0
    config.optim.warmup_epochs = 0.25
    config.optim.ema = 0.0  # decay; 0 = off
    config.optim.freeze = ()  # path patterns
    config.optim.freeze_backbone = False
    config.optim.train_vision = True
    config.optim.train_text_embedding = True
    config.optim.train_decoder_layers = -1  # the last k; -1 = all

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1  # all devices
    config.mesh.tensor = 1
    if "lora" in words:
        config.lora.rank = 16
        config.optim.lr = 5e-4  # OpenVLA's for adapters, which start at zero
    if "tiny" in words:
        config = _tiny(config)
    for head in heads:
        config.model.head = head
        # GPT as in RoboVLMs; the attention head is one block, the flow's expert four.
        config.model.head_layers = min(2, HEADS[head]) if "tiny" in words else HEADS[head]
    return config


def _tiny(config: ConfigDict) -> ConfigDict:
    """Small enough for a laptop, the same code path: random weights, the embedded block-pushing data."""
    config.steps = 1_000
    config.batch_size = 32
    config.log_every = 20
    config.eval_every = 250
    config.save_every = 250
    config.eval_batches = 8
    config.data.root = "runs/demo/data"
    config.data.mixture = "blocks"
    config.data.ram_budget = 256 * 2**20
    config.augment.crop_scale = (1.0, 1.0)  # the demo's pictures are 32 pixels wide, and its words name colours
    config.augment.brightness = config.augment.hue = 0.0
    config.augment.contrast = config.augment.saturation = (1.0, 1.0)
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
    return config
