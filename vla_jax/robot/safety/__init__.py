"""Between a policy and motors. Begin with filter.py.

bounds.py: the dims of an action by name, and their limits; limits.py: the file of them and its
units (limits_example.yaml). decision.py: one step, as a pure function, from what state.py
remembers; commands.py: numbers as motions and back. braking.py: what can still be stopped.
"""
