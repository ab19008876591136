"""Whether recorded episodes succeeded: frames to learn it from and to ask at (looks.py), and how
well a classifier tells it (figures.py).
"""
