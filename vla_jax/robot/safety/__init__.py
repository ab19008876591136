"""Between a policy and motors. Begin with filter.py.

limits.py: the file of limits and its units (limits_example.yaml). braking.py: what can still be
stopped.
"""
