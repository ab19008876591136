"""PaliGemma on Open X-Embodiment: the RoboVLMs recipe.

    python -m experiments.pretrain --config=oxe_paligemma.py           # PaliGemma-3B, 224 px,
                                                                       window 8, chunk 10, LSTM
    python -m experiments.pretrain --config=oxe_paligemma.py:gpt       # another head: gpt,
                                                                       attention, flow, discrete,
                                                                       fast, oft, expert
    python -m experiments.pretrain --config=oxe_paligemma.py:lora      # adapters in a frozen
                                                                       backbone; also :gpt,lora
    python -m experiments.pretrain --config=oxe_paligemma.py:tiny      # the same path in minutes on
                                                                       2 CPU cores
    python -m experiments.pretrain --config=oxe_paligemma.py:tiny,flow

The 3B job needs HF weights (model.weights) and the datasets of data.mixture under data.root;
without them it stops in seconds and says what is missing. `--config.model.weights=none --dry_run`
builds it abstractly on any machine.

Memory on each of 8 devices (--config.mesh.fsdp=8 --dry_run): 5.5 GiB of parameters, gradients and
Adam (gpt 5.6, flow 5.6, discrete 5.4, lora 0.9), and 0.32 GiB of activations per window (gpt 0.33,
flow and discrete 0.37, lora 0.31), 20.6 GiB for its 64. What one block computes comes on top.
Reference: RoboVLMs (arXiv 2412.14058), its OXE configs; it has the heads LSTM, GPT and discrete.
Where images with texts are co-trained on, discrete weighs them ten times as much:
--config.objectives.image_text.weight=0.5 for 0.05.
"""

from ml_collections import ConfigDict, FieldReference

from experiments.composition import presets


def get_config(arg: str = "") -> ConfigDict:
    """The full config, every field of it; `arg` holds the words of
    experiments/composition/presets.py. Other files start from it.
    """
    config = ConfigDict()
    config.steps = 50_000
    # > 0: the run ends after so many, where that is before `steps`; see composition/steps.py
    config.epochs = 0.0
    config.batch_size = 512  # windows, over all hosts
    config.accum = 1
    config.seed = 123
    config.log_every = 50
    config.wandb = ""  # a project of Weights & Biases that the rows go to as well; "" = off
    config.eval_every = 1_000  # 0: never
    # > 0: the run ends when so many evaluations in a row were no better than the best before
    config.early_stop = 0
    config.save_every = 1_000
    config.eval_batches = 16
    config.keep_checkpoints = 3
    config.nan_patience = 10  # consecutive skipped steps before the run stops
    config.data = _data()
    config.model = _model()
    config.augment = _augment()
    config.objectives = _objectives()
    config.optim = _optim()

    config.loss = ConfigDict()
    config.loss.kind = "huber"
    config.loss.delta = 1.0
    config.loss.arm = 1.0
    config.loss.gripper = 0.01

    # low-rank adapters in the backbone, which is then frozen; rank 0 = off
    config.lora = ConfigDict()
    config.lora.rank = 0
    config.lora.alpha = 16.0
    config.lora.dropout = 0.05
    config.lora.targets = ("backbone/*/attn/*", "backbone/*/mlp/*")

    # closed-loop success while it trains, of saved checkpoints, beside it on the CPU
    config.rollouts = ConfigDict()
    config.rollouts.sim = ""  # as experiments.rollout --sim; "" = off
    config.rollouts.every = 1_000  # steps: at the first save from each multiple on, and the last
    config.rollouts.episodes = 40

    config.rl = _rl()

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1  # all devices
    config.mesh.tensor = 1

    presets.apply(config, presets.parse(arg))
    return config


def tiny_mlp(arg: str) -> ConfigDict:
    """This file's config for a world that is learnt on a CPU, one frame at a time: `tiny`, and an
    MLP, as there is no time to fuse, unless the words in `arg` name a head.
    """
    words = presets.parse(f"tiny,{arg}")
    config = get_config()
    presets.apply(config, words)
    config.model.window = 1
    if not words & presets.HEADS.keys():
        config.model.head = "mlp"
    return config


def _data() -> ConfigDict:
    """What is read."""
    config = ConfigDict()
    config.root = (  # where TFDS keeps <name>/<version>; a path or a URL (gs://...)
        "~/tensorflow_datasets"
    )
    # A mixture, a dataset, or in a config file (("bridge", 1.0), ...): `object` admits both kinds.
    config.mixture = FieldReference("oxe_magic_soup", field_type=object)
    config.datasets = ""  # your own Python file that describes more datasets
    # a reviewed list of episodes to leave out (index_data --validate writes one)
    config.quarantine = ""
    # What is held out of datasets without a split of their own for it: a share of their episodes, a
    # number of them ("0": none), or a file that lists them as a quarantine does.
    config.held_out = "0.05"
    config.skip_unlabelled = True  # leaves out episodes without words
    config.min_length = 0  # leaves out episodes of fewer steps
    config.max_idle = 1.0  # leaves out episodes of which a larger share of steps hardly moves
    # ("q99", ("bounds", -0.65, 0.65)) is RoboVLMs' double normalisation
    config.normalise = ("q99",)
    # bytes of decoded frames over all hosts; more mixes more episodes, and where all fit each is
    # decoded once
    config.ram_budget = 16 * 2**30
    config.windows_per_visit = 64  # windows decoded together; fewer mix better and decode more
    config.stride = 1  # windows at every so many-th step of an episode alone
    config.blank_instruction = False  # ablation: every instruction becomes ""
    return config


def _model() -> ConfigDict:
    """The policy."""
    config = ConfigDict()
    config.backbone = "paligemma"
    config.variant = "3b-pt-224"
    config.weights = "weights/paligemma-3b-pt-224"  # HF folder, .npz, checkpoints, "none"
    # checkpoints of a run or an import: all its parameters, the head's too, in place of weights
    config.start = ""
    config.start_state = "params"  # of start: params, or full (optimizer and step too)
    config.allow_missing = ()  # patterns of names that may be absent from the weights
    # folder; "" = the weights' own; "train" = a small one from the data's instructions
    config.tokenizer = ""
    config.prompt_length = 48
    config.image_size = 224
    # pixels of each camera, in the order of cameras; (): all have image_size
    config.image_sizes = ()
    config.resize = "lanczos"  # how images get it: lanczos, bicubic, bilinear
    config.cameras = ("primary",)
    config.window = 8
    config.chunk = 10
    # Dims of the actions, how many and by name, and which of them are 0 or 1. 0, (): from the data,
    # matched by name (experiments/composition/spaces.py).
    config.action_dim = 0
    config.action_names = ()
    config.action_binary = ()
    config.history = "head"  # head, interleaved, one_step: see vla_jax/models/vla.py
    # what the head reads before an episode's first frame: repeat, grow (vla_jax/models/starts.py)
    config.history_start = "repeat"
    config.layout = "prefix"  # prefix, robovlms, robovlms_pre: models/sequence.py
    config.readouts = 1  # action query tokens per frame; of the head oft, per step of the chunk
    config.head = "lstm"
    config.head_hidden = 1024
    config.head_layers = 4
    config.head_mlp = (1024, 512, 256)
    config.head_attention = 8  # heads of attention in the heads gpt, attention and flow
    # "name=value,..." of what only this head's config class knows (vla_jax/models/heads/)
    config.head_options = ""
    config.bins = 256  # of each number, for the head discrete and oft's discrete readout
    config.temperature = 0.0  # of its decoding; 0 takes the likeliest token
    # the vocabulary of the head fast and of objectives.fast: fitted on the run's data, or the
    # fast.json of another run on the same data
    config.fast = ConfigDict()
    config.fast.file = "fit"
    config.fast.scale = 10.0  # steps per network unit that a coefficient is rounded to
    config.fast.tokens = 1024  # at most; PaliGemma has as many <loc>, whose place they take
    config.fast.most = 0  # tokens of a chunk; 0: as many as any can need
    config.proprio = False  # the robot's state as a token before the readouts
    # it as words of the prompt, pi0.5's, in the place of the token (vla_jax/robot/state_words.py)
    config.state_words = False
    config.state_names = ()  # its numbers; (): from the data
    config.embodiment = False  # which dataset's robot it is, as a learned token before the readouts
    config.embodiments = ()  # the datasets that are told apart; (): from the data
    # sensors as tokens before the readouts: "imu=vector:10x6,front=scan:180,...", see
    # vla_jax/robot/sensing.py
    config.sensors = ""
    config.past_action = False  # the action before each frame as a token before the readouts
    # share of frames that do not see it in training, against copying
    config.past_action_hidden = 0.5
    config.resampler = ConfigDict()  # fewer visual tokens per image; depth 0 = off, RoboVLMs has 6
    config.resampler.depth = 0
    config.resampler.heads = 8
    config.resampler.dim_head = 64
    config.resampler.latents = 64
    # in its place: where things are, by heat maps, `points` a token; 0 = off
    # (vla_jax/models/keypoints.py)
    config.keypoints = ConfigDict()
    config.keypoints.points = 0
    config.keypoints.hidden = 256
    config.keypoints.tokens = 8
    config.dtype = "bfloat16"  # compute; master parameters are float32
    config.act_dtype = "float32"  # of rollouts and exported weights, unless they are told another
    # products of the backbone's blocks in a training step: "" as dtype says, int8, float8 (by qwix)
    config.eight_bits = ""
    config.remat = "full"
    config.layers = "scan"
    return config


def _augment() -> ConfigDict:
    """What is drawn for training images: RoboVLMs' and OpenVLA's choice on OXE."""
    config = ConfigDict()
    config.crop_scale = (0.9, 0.9)  # share of the area
    config.crop_ratio = (1.0, 1.0)
    config.brightness = 0.2
    config.contrast = (0.8, 1.2)
    config.saturation = (0.8, 1.2)
    config.hue = 0.05
    config.shift = ()  # pixels, one number per camera; RoboVLMs on CALVIN has this alone
    config.sensor_dropout = 0.0  # share of windows that go without a sensor, drawn for each
    config.word_dropout = 0.0  # share of the instruction's tokens that are not there
    config.flip = False  # True is refused: it would need mirrored actions
    return config


def _objectives() -> ConfigDict:
    """Auxiliary tasks; a weight of 0 leaves a task out of the program, its data included."""
    config = ConfigDict()
    config.forward = ConfigDict()  # prediction of future frames
    config.forward.weight = 0.0
    config.forward.offsets = (10,)  # how many steps ahead
    config.forward.tokens = 8  # query tokens per future frame and camera
    config.forward.width = 512  # of the decoder
    config.forward.depth = 2
    config.forward.patch = 16  # pixels
    config.caption = ConfigDict()  # the instruction from the images
    config.caption.weight = 0.0
    # co-training on images with texts; RoboVLMs: 0.05, discrete head 0.5
    config.image_text = ConfigDict()
    config.image_text.weight = 0.0
    config.image_text.dataset = ""  # a TFDS dataset under data.root
    config.image_text.length = 128  # tokens of question and answer
    # The chunk as a string of FAST (model.fast), which the backbone learns to write beside any head
    # of numbers; the head does not see it. Knowledge insulation, where the backbone learns from
    # strings and texts alone: --config=oxe_paligemma.py:expert
    # --config.model.head_options=insulated=True --config.objectives.fast.weight=1
    # --config.objectives.caption.weight=0.1
    config.fast = ConfigDict()
    config.fast.weight = 0.0
    # what a sensor of the data reads that the policy does not have, as model.sensors has it, row r
    # from token r of each camera: "scene=vector:4x8" of simulated data, to learn to see by
    config.sensed = ConfigDict()
    config.sensed.weight = 0.0
    config.sensed.sensor = ""
    config.sensed.hidden = 256
    # readouts near CLIP's embedding of the instruction; RoboVLMs: 0.05
    config.text_align = ConfigDict()
    config.text_align.weight = 0.0
    config.text_align.width = 768  # of that embedding
    config.text_align.clip = (  # Hugging Face folder with its tokenizer
        "weights/clip-vit-large-patch14"
    )
    return config


def _rl() -> ConfigDict:
    """Learning by trial (experiments/finetune_rl.py), where `steps` counts its rounds."""
    config = ConfigDict()
    config.algorithm = ""  # ppo, grpo; "" = learning from demonstrations
    config.sim = ""  # as experiments.rollout --sim
    config.reward = ""  # the work directory of experiments.train_reward; "": success in the world
    config.episodes = 96  # of a round, each its own
    config.trials = 1  # of each of them; of grpo, which compares them, 2 or more
    config.environments = 16  # at one time
    config.epochs = 4  # passes over a round's decisions
    config.discount = 0.99  # of what comes a control step later
    config.decay = 0.95  # lambda of generalised advantage estimation
    config.clip = 0.2
    # nats: a round's updates end where the policy is this far from the one that acted
    config.update_limit = 0.05
    config.value = 0.5  # what the critic's error weighs
    config.divergence = 0.01  # what the divergence from the policy at the start weighs
    # What else the policy can do and is to go on doing: other tasks (as experiments.rollout --sim),
    # which earn nothing. The policy at the start plays so many of their episodes once, and what the
    # divergence weighs there is this.
    config.keep = ""
    config.keep_episodes = 96
    config.keep_weight = 1.0
    # nats a chunk from the policy at the start, at which a run ends; 0: none
    config.budget = 0.0
    config.beta = 0.1  # of dpo: what a nat of likelihood is worth
    # of exploration at the start, network units; of a head that flows the level of its noise
    # (vla_jax/rl/paths.py)
    config.std = 0.1
    config.hidden = 256  # of the critic
    config.critic_lr = 1e-3  # its own rate of learning
    # only the head learns; what it reads is computed once a round
    config.head_only = False
    return config


def _optim() -> ConfigDict:
    """AdamW, its schedule, and what is frozen."""
    config = ConfigDict()
    config.lr = 2e-5
    config.b1 = 0.9
    config.b2 = 0.999
    config.eps = 1e-8
    config.mu_dtype = "float32"  # Adam's first moment; bfloat16 saves two bytes a parameter
    config.weight_decay = 0.0
    config.clip = 1.0
    config.schedule = "constant"
    config.min_lr_scale = 0.0  # where half_cosine ends, as a fraction of lr
    config.warmup_steps = 0
    config.warmup_epochs = 0.25
    config.ema = 0.0  # decay; 0 = off
    config.freeze = ()  # path patterns
    config.freeze_backbone = False
    config.train_vision = True
    config.train_text_embedding = True
    config.train_decoder_layers = -1  # the last k; -1 = all
    return config
