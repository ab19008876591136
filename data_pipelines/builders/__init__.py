"""Writes RLDS files as TFDS lays them out, and LeRobot folders.

blocks.py, blocks_captions.py, navigation.py: the embedded data, over made.py. calvin.py: CALVIN as
it is downloaded, read by calvin_source.py; calvin_demonstrations.py: others, made in its simulator
(calvin_world.py) from the user's clones (calvin_clones.py). rlds_files.py: what they share. Of
convert.py: recorded.py reads, to_rlds.py and to_lerobot.py (over lerobot_files.py) write.
"""
