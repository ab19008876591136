"""The parts of experiments.replay (and of quantise, which looks at recorded frames too).

recorded.py: episodes as a robot would see them. figures.py: errors. trigger.py, regret.py and
calibration.py fit what --trigger and --calibrate write.
"""
