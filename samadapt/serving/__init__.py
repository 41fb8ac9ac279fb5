"""Adapters served to the programs in which people annotate.

The core knows nothing of HTTP: models over one base (``served_models.py``), images that are encoded
once (``served_image.py``), objects that prompts change (``served_object.py``), sessions that expire
(``sessions.py``), and one thread that computes for all of them (``worker.py``). Each protocol is
one thin file over it, and ``guard.py`` checks every request before it reaches a protocol.
"""
