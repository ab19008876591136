"""The parts of experiments.view: svg.py draws numbers over steps, episodes.py shows an episode,
page.py puts them together.
"""
