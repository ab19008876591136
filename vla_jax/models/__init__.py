"""What is trained: observation -> token sequence -> backbone -> readouts -> head.

Begin with vla.py, the policy; sequence.py draws what stands where in a frame. transformer.py is the
one block that every tower, decoder and head configures; backbones/ and heads/ hold one file each
kind. Nothing here knows how it is trained, exported or served.
"""
