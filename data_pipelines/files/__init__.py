"""Bytes -> records -> episodes. Begin with formats.py.

remote.py       reading by path or URL, with retries
tfrecord.py     records with checked CRCs, and the messages in them
tfds_folder.py  dataset_info.json, features.json and the files they describe
features.py     the features that a dataset promises
formats.py      which format a dataset has
rlds.py         standardised episodes of RLDS; record.py, of one of its records
lerobot.py      what meta/ of a LeRobot folder says; lerobot_features.py, of promised features;
                lerobot_rows.py, standardised episodes of it
hdf5.py         standardised episodes of HDF5 files (robomimic, LIBERO, ALOHA), and their frames
video.py        frames of a video; pictures.py, camera frames however they are stored
store.py        the file that holds an index
"""
