"""RLDS files -> batches, in the order of this list; never imports TensorFlow.

files/         paths and URLs, records, episodes; store.py, the file of an index
index.py       what is known of a dataset after one pass; stats, report, quarantine
standardise.py datasets/   what the numbers of a dataset mean, as data
order.py windows.py        which window comes when, what is in it: pure functions
frames.py images.py        decoding
mixture.py assemble.py loader.py   what is read together; batches
builders/      writes RLDS: the embedded data, CALVIN

Begin with loader.py.
"""
