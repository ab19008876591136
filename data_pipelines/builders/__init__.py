"""Writes RLDS files as TFDS lays them out, and LeRobot folders.

blocks.py, blocks_captions.py, navigation.py: the embedded data, over made.py; *_world.py are worlds
that can be stepped, *_expert.py who acts in them. calvin.py: CALVIN as it is downloaded, read by
calvin_source.py. rlds_files.py: what they share. Of convert.py: recorded.py reads, to_rlds.py and
to_lerobot.py (over lerobot_files.py) write.
"""
