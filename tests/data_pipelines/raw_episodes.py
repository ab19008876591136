"""Generated episodes with the raw columns that each dataset declares."""

import zlib

import numpy as np

from data_pipelines.datasets import DATASETS

EXTERNAL = "_converted_externally_to_rlds"

# Numbers a step of every raw column (0: one number without an axis), from the TFDS catalogue and
# the features.json of a mirror of the bucket where those have the dataset, else what the
# registries' slices need.
ARM = {"action/world_vector": 3, "action/rotation_delta": 3}
FLAT = {"action": 7, "observation/state": 7}
CONVERTED = {"action": 7, "observation/cartesian_position": 6, "observation/gripper_position": 1}
DROID = {"action_dict/cartesian_velocity": 6, "action_dict/gripper_position": 1} | {
    key: width for key, width in CONVERTED.items() if key != "action"
}
WIDTHS = {
    "blocks": {"action": 7, "state": 7},
    "metaworld": {"action": 4, "observation/state": 4},
    "navigation": {"action": 3, "observation/state": 3},
    "calvin": FLAT | {"observation/state": 15},
    "calvin_play": FLAT | {"observation/state": 15},
    "calvin_scene": FLAT | {"observation/state": 15},
    "bridge": FLAT,
    "bridge_oxe": {"action/open_gripper": 0, "observation/state": 7},
    "fractal20220817_data": ARM
    | {
        "action/gripper_closedness_action": 1,
        "observation/base_pose_tool_reached": 7,
        "observation/gripper_closed": 1,
    },
    "kuka": ARM
    | {
        "action/gripper_closedness_action": 1,
        "observation/clip_function_input/base_pose_tool_reached": 7,
        "observation/gripper_closed": 1,
    },
    "taco_play": {"action/rel_actions_world": 7, "observation/robot_obs": 15},
    "jaco_play": {
        "action/world_vector": 3,
        "action/gripper_closedness_action": 1,
        "observation/end_effector_cartesian_pos": 7,
    },
    "berkeley_cable_routing": ARM | {"observation/robot_state": 7},
    "roboturk": ARM | {"action/gripper_closedness_action": 1},
    "nyu_door_opening_surprising_effectiveness": ARM | {"action/gripper_closedness_action": 1},
    "viola": ARM
    | {
        "action/gripper_closedness_action": 0,
        "observation/joint_states": 7,
        "observation/gripper_states": 1,
    },
    "berkeley_autolab_ur5": ARM
    | {"action/gripper_closedness_action": 0, "observation/robot_state": 15},
    "toto": ARM | {"action/open_gripper": 0, "observation/state": 7},
    "language_table": {"action": 2, "observation/effector_translation": 2},
    "columbia_cairlab_pusht_real": ARM
    | {"action/gripper_closedness_action": 0, "observation/robot_state": 2},
    "bc_z": {
        "action/future/xyz_residual": 30,
        "action/future/axis_angle_residual": 30,
        "action/future/target_close": 10,
        "observation/present/xyz": 3,
        "observation/present/axis_angle": 3,
        "observation/present/sensed_close": 1,
    },
    f"stanford_hydra_dataset{EXTERNAL}": FLAT | {"observation/state": 27},
    f"austin_buds_dataset{EXTERNAL}": FLAT | {"observation/state": 24},
    f"austin_sailor_dataset{EXTERNAL}": FLAT | {"observation/state": 8},
    f"austin_sirius_dataset{EXTERNAL}": FLAT | {"observation/state": 8},
    "utaustin_mutex": FLAT | {"observation/state": 24},
    f"nyu_franka_play_dataset{EXTERNAL}": {"action": 15, "observation/state": 13},
    f"maniskill_dataset{EXTERNAL}": FLAT | {"observation/tcp_pose": 7, "observation/state": 18},
    f"furniture_bench_dataset{EXTERNAL}": {"action": 8, "observation/state": 35},
    f"cmu_franka_exploration_dataset{EXTERNAL}": {"action": 8},
    f"kaist_nonprehensile{EXTERNAL}": {"action": 20, "observation/state": 21},
    f"stanford_robocook{EXTERNAL}": FLAT,
    f"iamlab_cmu_pickup_insert{EXTERNAL}": {"action": 8, "observation/state": 20},
    "cmu_playing_with_food": {"action": 8, "observation/state": 6},
    "cmu_play_fusion": {"action": 9, "observation/state": 8},
    "fmb_dataset": {"action": 7, "observation/eef_pose": 7, "observation/state_gripper_pose": 0},
    f"stanford_kuka_multimodal_dataset{EXTERNAL}": {
        "action": 4,
        "observation/ee_position": 3,
        "observation/ee_orientation": 4,
    },
    f"nyu_rot_dataset{EXTERNAL}": FLAT,
    f"ucsd_kitchen_dataset{EXTERNAL}": {"action": 8, "observation/state": 21},
    f"ucsd_pick_and_place_dataset{EXTERNAL}": {"action": 4, "observation/state": 7},
    f"utokyo_xarm_pick_and_place{EXTERNAL}": {"action": 7},
    f"utokyo_xarm_bimanual{EXTERNAL}": {"action": 14, "observation/pose_r": 6},
    f"utokyo_pr2_opening_fridge{EXTERNAL}": {"action": 8, "observation/state": 7},
    f"utokyo_pr2_tabletop_manipulation{EXTERNAL}": {"action": 8, "observation/state": 7},
    "robo_net": {"action": 5, "observation/state": 5},
    f"stanford_mask_vit{EXTERNAL}": {"action": 5, "observation/end_effector_pose": 5},
    f"tokyo_u_lsmo{EXTERNAL}": {"action": 7, "observation/state": 13},
    f"dlr_sara_pour{EXTERNAL}": {"action": 7, "observation/state": 6},
    f"dlr_sara_grid_clamp{EXTERNAL}": {"action": 7, "observation/state": 12},
    f"dlr_edan_shared_control{EXTERNAL}": FLAT,
    f"asu_table_top{EXTERNAL}": FLAT | {"ground_truth_states/EE": 6},
    "imperialcollege_sawyer_wrist_cam": {"action": 8},
    "uiuc_d3field": {"action": 3},
    "berkeley_fanuc_manipulation": {"action": 6, "observation/state": 13},
    "cmu_stretch": {"action": 8, "observation/state": 4},
    "dobbe": FLAT,
    "rh20t": {
        "action/tcp_base": 6,
        "action/gripper": 0,
        "observation/tcp_base": 6,
        "observation/gripper_width": 0,
    },
    "mujoco_manip": {"action": 7},
    f"berkeley_mvp{EXTERNAL}": {"action": 8, "observation/pose": 7, "observation/gripper": 0},
    f"berkeley_rpt{EXTERNAL}": {"action": 8, "observation/joint_pos": 7, "observation/gripper": 0},
    "roboset": {"action": 8, "observation/state": 8},
    "aloha_static_dataset": {"action": 14, "observation/state": 14},
    "aloha_dagger_dataset": {"action": 14, "observation/state": 14},
    "aloha_mobile_dataset": {"action": 16, "observation/state": 14},
    "gnm_dataset": {"action": 2, "observation/state": 3},
    **{
        f"berkeley_gnm_{place}": {"action": 2, "observation/position": 2, "observation/yaw": 1}
        for place in ("recon", "cory_hall", "sac_son")
    },
    "droid": DROID,
    "droid_wipe": DROID,
    **{name: CONVERTED for name in DATASETS if name.startswith(("tdroid_", "ppgm"))},
    **{
        f"libero_{suite}_no_noops": FLAT | {"observation/state": 8}
        for suite in ("spatial", "object", "goal", "10")
    },
}
COMPRESSED = (
    "observation/clip_function_input/base_pose_tool_reached",
    "observation/gripper_closed",
)
QUATERNIONS = (
    f"furniture_bench_dataset{EXTERNAL}",
    f"iamlab_cmu_pickup_insert{EXTERNAL}",
    "cmu_playing_with_food",
)


def generate(name, steps, low, high):
    """Raw columns of an episode: numbers in [low, high], which are 0 or 1 at the last step."""
    rng = np.random.default_rng(len(name))
    columns = {}
    for key, width in WIDTHS[name].items():
        column = rng.uniform(low, high, (steps, width) if width else (steps,)).astype(np.float32)
        column[-1:] = column[-1:] > (low + high) / 2
        if key.endswith(("open_gripper", "target_close")):  # stored as bool or int
            column = (column > 0.5).astype(np.int64)
        if name in QUATERNIONS and key == "action" and steps:
            column[:, 3:7] = column[:, 3:7] + 0.1
            column[:, 3:7] /= np.linalg.norm(column[:, 3:7], axis=1, keepdims=True)
        if name == "kuka" and key in COMPRESSED:
            cells = [zlib.compress(row.astype("<f4").tobytes()) for row in column]
            column = np.array(cells, object)
        column.flags.writeable = False  # an entry that writes into its input fails
        columns[key] = column
    return columns
