"""Bytes -> records -> episodes. Begin with rlds.py.

remote.py       reading by path or URL, with retries
tfrecord.py     records with checked CRCs, and the messages in them
tfds_folder.py  dataset_info.json, features.json and the files they describe
features.py     the features that a dataset promises
rlds.py         standardised episodes
store.py        the file that holds an index
"""
