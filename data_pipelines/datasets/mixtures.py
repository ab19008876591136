"""Named mixtures: (dataset, weight) pairs. A weight multiplies the dataset's number of windows.

OpenVLA's (commit c8f03f4; RoboVLMs trains on them) have the plain names, Octo's (241fb35) are
octo_... where the two differ. Both sources list some datasets twice and keep the first weight; here
the second is left out.
"""

Mixture = tuple[tuple[str, float], ...]

BRIDGE: Mixture = (("bridge", 1.0),)

_RT_X: Mixture = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 2.0),
    ("berkeley_cable_routing", 3.0),
    ("roboturk", 1.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 1.0),
    ("toto", 1.0),
)
_DOOR = "nyu_door_opening_surprising_effectiveness"
_OCTO_RT_X: Mixture = (*_RT_X, (_DOOR, 5.0))

# Octo's Franka mixture without the four that RT-X has too: behind RT-X those are the duplicates.
_FRANKA: Mixture = (
    ("stanford_hydra_dataset_converted_externally_to_rlds", 1.0),
    ("austin_buds_dataset_converted_externally_to_rlds", 3.0),
    ("nyu_franka_play_dataset_converted_externally_to_rlds", 3.0),
    ("maniskill_dataset_converted_externally_to_rlds", 0.1),
    ("furniture_bench_dataset_converted_externally_to_rlds", 0.1),
    ("cmu_franka_exploration_dataset_converted_externally_to_rlds", 5.0),
    ("austin_sailor_dataset_converted_externally_to_rlds", 1.0),
    ("austin_sirius_dataset_converted_externally_to_rlds", 1.0),
    ("berkeley_rpt_converted_externally_to_rlds", 1.0),
    ("kaist_nonprehensile_converted_externally_to_rlds", 3.0),
    ("stanford_robocook_converted_externally_to_rlds", 1.0),
    ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", 1.0),
    ("utaustin_mutex", 1.0),
    ("cmu_play_fusion", 1.0),
)

_RT_1, _TABLE = ("fractal20220817_data", 0.54087122203), ("language_table", 0.1)
_SOUP: Mixture = (
    ("kuka", 0.8341046294),
    ("bridge", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("roboturk", 2.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 2.0),
    ("toto", 1.0),
    ("stanford_hydra_dataset_converted_externally_to_rlds", 2.0),
    ("austin_buds_dataset_converted_externally_to_rlds", 1.0),
    ("nyu_franka_play_dataset_converted_externally_to_rlds", 3.0),
    ("furniture_bench_dataset_converted_externally_to_rlds", 0.1),
    ("ucsd_kitchen_dataset_converted_externally_to_rlds", 2.0),
    ("austin_sailor_dataset_converted_externally_to_rlds", 1.0),
    ("austin_sirius_dataset_converted_externally_to_rlds", 1.0),
    ("dlr_edan_shared_control_converted_externally_to_rlds", 1.0),
    ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", 1.0),
    ("utaustin_mutex", 1.0),
    ("berkeley_fanuc_manipulation", 2.0),
    ("cmu_stretch", 1.0),
)
_MAGIC: Mixture = (_RT_1, *_SOUP, _TABLE)
_PLUS: Mixture = (("bc_z", 0.2), ("fmb_dataset", 1.0), ("dobbe", 0.2))
_OCTO_MAGIC: Mixture = (*_MAGIC, (_DOOR, 1.0), ("bc_z", 0.2))
_FLEXIBLE: Mixture = (
    ("berkeley_mvp_converted_externally_to_rlds", 1.0),
    ("gnm_dataset", 1.0),
    ("aloha_static_dataset", 3.0),
    ("aloha_mobile_dataset", 2.0),
    ("dobbe", 1.0),
    ("roboset", 0.5),
    ("rh20t", 0.5),
)

# The rest of what Octo had converted when it defined oxe_full.
_REST = (
    "columbia_cairlab_pusht_real",
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds",
    "nyu_rot_dataset_converted_externally_to_rlds",
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds",
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds",
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds",
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds",
    "utokyo_xarm_bimanual_converted_externally_to_rlds",
    "robo_net",
    "berkeley_mvp_converted_externally_to_rlds",
    "stanford_mask_vit_converted_externally_to_rlds",
    "tokyo_u_lsmo_converted_externally_to_rlds",
    "dlr_sara_pour_converted_externally_to_rlds",
    "dlr_sara_grid_clamp_converted_externally_to_rlds",
    "asu_table_top_converted_externally_to_rlds",
    "imperialcollege_sawyer_wrist_cam",
    "uiuc_d3field",
    "cmu_playing_with_food",
    "gnm_dataset",
)
_FULL = dict.fromkeys([*(name for name, _ in (*_OCTO_MAGIC, *_FRANKA)), *_REST], 1.0)

_ALONE = (
    "tdroid_carrot_in_bowl",
    "tdroid_pour_corn_in_pot",
    "tdroid_flip_pot_upright",
    "tdroid_move_object_onto_plate",
    "tdroid_knock_object_over",
    "tdroid_cover_object_with_towel",
    "droid_wipe",
    "libero_spatial_no_noops",
    "libero_object_no_noops",
    "libero_goal_no_noops",
    "libero_10_no_noops",
)

MIXTURES: dict[str, Mixture] = {
    "blocks": (("blocks", 1.0),),
    "bridge": BRIDGE,
    "rt_1": (
        ("fractal20220817_data", 1.0),
    ),  # RoboVLMs names it and defines it nowhere; this is what it means
    "bridge_rt_1": (*BRIDGE, ("fractal20220817_data", 1.0)),
    "rtx": _RT_X,
    "rtx_franka": (*_RT_X, *_FRANKA),
    "oxe_magic_soup": _MAGIC,
    "oxe_magic_soup_plus": (*_MAGIC, *_PLUS, ("droid", 0.06)),
    "oxe_magic_soup_plus_minus": (("fractal20220817_data", 1.0), *_SOUP, *_PLUS),
    **{name: ((name, 1.0),) for name in _ALONE},
    "octo_rtx": _OCTO_RT_X,
    "octo_rtx_franka": (*_OCTO_RT_X, *_FRANKA),
    "octo_oxe_magic_soup": _OCTO_MAGIC,
    "oxe_flex_act_soup": (*_OCTO_MAGIC, *_FLEXIBLE),
    # Defined by Octo, but under no name that its users can ask for.
    "oxe_franka": (
        ("taco_play", 1.0),
        ("berkeley_cable_routing", 1.0),
        ("viola", 1.0),
        ("toto", 1.0),
        *_FRANKA,
    ),
    "oxe_full": tuple(_FULL.items()),
}
