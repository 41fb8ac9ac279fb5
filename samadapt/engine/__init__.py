"""The data engine: masks are proposed, corrected by people, and teach the next model.

``workspace.py`` says what its folder holds. ``proposals.py``, ``ranking.py`` and ``acceptance.py``
are the stages before the training; ``runs/engine_round.py`` is the training.
"""
