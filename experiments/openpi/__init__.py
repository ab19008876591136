"""openpi's checkpoints as ours: files.py opens them, names.py says which array is which, policy.py
what policy they are.
"""
