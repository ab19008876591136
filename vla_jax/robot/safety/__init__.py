"""Between a policy and motors. Begin with filter.py.

decision.py: one step, as a pure function. braking.py: what can still be stopped. limits.py: the
file of limits and its units (limits_example.yaml).
"""
