"""Which keys of a RoboVLMs JSON config change nothing, and why; a table for
experiments/robovlms/config.py.

Facts: RoboVLMs @ 8adc1d2, read key by key.
"""

_UNREAD = "no effect in RoboVLMs: nothing reads it"
_HEAD = "no effect in RoboVLMs: the top-level value replaces it"
_PLACE = "where files are; not part of a policy"
_RUN = "how a run is executed or reported; not part of a policy"
_PIPE = "about reading data; data.* here"
_ABSENT = "no effect in RoboVLMs: what it weighs does not exist"
_RESAMPLER = "no effect in RoboVLMs: only the width reaches the resampler, which is off"
_LORA = "no effect without train_setup.lora_enable"
_DISCRETE = "no effect with continuous actions"
_DUMPED = "RoboVLMs' main.py adds it when it writes down how a run was started"

# Key pattern -> reason.
IGNORED = {
    "robovlm_name": "follows from model",
    "model_url": _PLACE,
    "model_path": _PLACE,
    "model_config": _UNREAD,
    "deepspeed_config": _RUN,
    "task_name": _RUN,
    "exp_name": _RUN,
    "output_root": _PLACE,
    "log_root": _PLACE,
    "cache_root": _PLACE,
    "model_load_path": "where the run began; the weights given are where it ended",
    "model_load_source": "where the run began; the weights given are where it ended",
    "resume": "where the run began; the weights given are where it ended",
    "seq_len": "no effect in RoboVLMs: printed only",
    "image_mean": "no effect in RoboVLMs: the backbone's own are used",
    "image_std": "no effect in RoboVLMs: the backbone's own are used",
    "cap_loss_ratio": _ABSENT,
    "fwd_loss_ratio": _ABSENT,
    "kl_div_ratio": _ABSENT,
    "vl_cotrain_ratio": _ABSENT,
    "clip_norm_ratio": "of use_clip_norm, which only training computes",
    "batch_size": "per GPU, and the number of GPUs is not said: set batch_size",
    "num_workers": _RUN,
    "optimizer": "no effect in RoboVLMs: it is always AdamW",
    "min_lr_scale": "no effect in RoboVLMs without the half-cosine schedule",
    "data_scale": _UNREAD,
    "warmup_ratio": _UNREAD,
    "use_time_causal_attn": _UNREAD,
    "use_mim_obs_loss": _UNREAD,
    "use_pixel_loss": _UNREAD,
    "use_obs_queries": _UNREAD,
    "use_act_queries": _UNREAD,
    "vision_masked_ratio": _UNREAD,
    "use_tube_mask": _UNREAD,
    "use_multi_modal_emb": _UNREAD,
    "no_video_pretrained_model": _UNREAD,
    "finetune": _UNREAD,
    "discrete_action_history": _UNREAD,
    "vision_resampler": _RESAMPLER,
    "vision_resampler.*": _RESAMPLER,
    "act_encoder": _UNREAD,
    "act_encoder.*": _UNREAD,
    "act_head.with_history": _UNREAD,
    "act_head.window_size": _HEAD,
    "act_head.fwd_pred_next_n": _HEAD,
    "act_head.n_bin": _DISCRETE,
    "act_head.min_action": _DISCRETE,
    "act_head.max_action": _DISCRETE,
    "act_head.token_source": "no effect unless tokens are down-sampled",
    "act_head.policy_rnn_dropout_p": "dropout is not implemented; it is 0 in every released config",
    "train_setup.precision": "no effect in RoboVLMs: trainer.precision replaces it",
    "train_setup.bits": _UNREAD,
    "train_setup.freeze_mm_mlp_adapter": _UNREAD,
    "train_setup.tune_mm_mlp_adapter": _UNREAD,
    "train_setup.mm_use_im_start_end": _UNREAD,
    "train_setup.mm_use_im_patch_token": _UNREAD,
    "train_setup.mm_projector_lr": _UNREAD,
    "train_setup.gradient_checkpointing": "no effect in RoboVLMs; model.remat here",
    "train_setup.freeze_resampler": "no effect without a resampler",
    "train_setup.reinit": "how weights began; the ones given replace it",
    "train_setup.lora_r": _LORA,
    "train_setup.lora_alpha": _LORA,
    "train_setup.lora_dropout": _LORA,
    "train_setup.lora_bias": _LORA,
    "tokenizer.type": "follows from model",
    "tokenizer.tokenizer_type": "follows from model",
    "tokenizer.max_text_len": "no effect in RoboVLMs: limits are in its code",
    "tokenizer.additional_special_tokens": "tokens that no prompt of a continuous policy has",
    "llava": _UNREAD,
    "llava_config": _UNREAD,
    "vlm.type": "follows from model",
    "vlm.name": "follows from model",
    "vlm.pretrained_model_name_or_path": _PLACE,
    "trainer.gradient_clip_val": "no effect in RoboVLMs: the top-level value (0) replaces it",
    "trainer.max_epochs": "steps are counted here: set steps",
    "trainer.max_steps": "steps are counted here: set steps",
    **{
        f"trainer.{key}": _RUN
        for key in (
            "accelerator", "strategy", "logger", "use_distributed_sampler", "log_every_n_steps",
            "val_check_interval",
            "check_val_every_n_epoch", "limit_val_batches", "limit_train_batches",
            "num_sanity_val_steps", "devices",
            "num_nodes", "callbacks", "default_root_dir", "profiler", "benchmark",
        )
    },
    "x_mean": "no effect without regular_action",
    "x_std": "no effect without regular_action",
    "mu_val": "no effect without use_mu_law",
    "train_weights": _PIPE,
    "use_clip_norm": "only training computes it: its head says nothing of an action",
    **dict.fromkeys(
        (
            "raw_config_path", "config", "log_dir", "output_dir", "data_dir", "annotation_file",
            "data_subfolder", "task_num", "gpus", "num_nodes", "llm", "llm.*",
        ),
        _DUMPED,
    ),
}  # fmt: skip

# Key -> the values that mean what our policies do, and what another one would mean.
ONLY: dict[str, tuple[tuple[object, ...], str]] = {
    "fwd_head": ((None,), "RoboVLMs' forward head does not exist in its repository"),
    "use_vision_resampler": (
        (False, None),
        "RoboVLMs uses it with MoonDream alone, which is not read here",
    ),
    "use_state": ((False, None), "RoboVLMs never feeds the state it asks for"),
    "regular_action": ((False, None), "RoboVLMs scales the gripper with it by mistake"),
    "use_mu_law": ((False, None), "mu-law actions are not implemented"),
    "tcp_rel": ((False, None), "actions in the gripper's frame are not implemented"),
    "train_setup.predict_action": ((True,), "it would have no policy head"),
    "train_setup.predict_forward": (
        (False, None),
        "RoboVLMs' forward head does not exist in its repository",
    ),
    "train_setup.predict_forward_hand": (
        (False, None),
        "RoboVLMs' forward head does not exist in its repository",
    ),
    "train_setup.predict_caption": ((False, None), "RoboVLMs has no caption loss"),
    "train_setup.lora_enable": (
        (False, None),
        "its adapters must be merged into the weights first",
    ),
    "act_head.down_sample": (("none",), "pooled tokens are not implemented"),
    "act_head.action_space": (("continuous",), "only policies with an action token are read"),
    "act_head.fill_zero": ((False, None), "a masked action token is not implemented"),
}

# Keys of train_dataset and val_dataset -> why they are ignored; "" where they are translated.
DATASET_KEYS = {
    "type": "",
    "data_mix": "",
    "rgb_pad": "",
    "gripper_pad": "",
    "image_aug": "",
    "data_dir": _PLACE,
    "data_root_dir": _PLACE,
    "model_name": "no effect in RoboVLMs: the top-level model replaces it",
    "tokenizer_type": "follows from model",
    "shift_first": _UNREAD,
    **dict.fromkeys(
        (
            "mode", "train", "is_training", "window_sample", "organize_type", "left_pad",
            "shuffle_buffer_size",
            "balance_weights", "filter_langs", "chunk_action", "frame_num", "traj_cons",
            "text_aug", "skip_frames",
            "partial_data", "few_shot", "exclude_tasks", "image_size", "num_workers", "batch_size",
            "act_step",
            "discrete", "c_act_scaler", "resume_iter",
        ),
        _PIPE,
    ),
}  # fmt: skip
