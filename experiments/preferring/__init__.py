"""Which of two clips people, or a script, prefer: pairs and choices (pairs.py), the page that shows
them (page.py), and what a model sees of them (seen.py).
"""
