"""What runs beside a robot; nothing of JAX. Begin with client.py, or runtime.py for the loop.

torch_policy/ is the standalone policy, copied into each artefact; serving/ puts it on a socket;
safety/ stands between it and motors; events/ says when the backbone has to run.
"""
