"""Writes RLDS files as TFDS lays them out.

blocks.py, blocks_captions.py: the embedded data. calvin.py: CALVIN as it is downloaded, read by
calvin_source.py. rlds_files.py: what they share.
"""
