"""When the backbone has to run. Begin with trigger.py.

regret.py: what going on without it is expected to cost. calibration.py: what confidence is worth.
"""
