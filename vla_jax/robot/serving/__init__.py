"""A policy on a websocket. Begin with server.py: who may connect.

sessions.py: the messages. inference.py: the one thread that computes. metrics.py: Prometheus.
"""
