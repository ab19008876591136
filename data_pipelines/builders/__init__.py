"""Writes RLDS files as TFDS lays them out, and LeRobot folders.

blocks.py, blocks_captions.py, navigation.py: the embedded data, over made.py; metaworld.py,
libero.py: Meta-World's and LIBERO's tasks, over shards.py, drawn by what mujoco_renderer.py finds.
*_world.py are worlds that can be stepped, *_expert.py who acts in them.
calvin.py: CALVIN as it is downloaded, read by calvin_source.py; calvin_demonstrations.py: others,
made in its simulator from the user's clones (calvin_clones.py), told as calvin_wordings.py has it.
rlds_files.py: what they share. Of convert.py: recorded.py reads, to_rlds.py and to_lerobot.py (over
lerobot_files.py) write.
"""
