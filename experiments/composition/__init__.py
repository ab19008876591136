"""A config becomes a model, data and an optimizer. Begin with build.py, the composition table."""
