"""Bytes -> records -> episodes. Begin with rlds.py.

remote.py: reading by path or URL, with retries. tfrecord.py: records with checked CRCs.
tfds_folder.py: features.json, dataset_info.json. store.py: the file that holds an index.
"""
