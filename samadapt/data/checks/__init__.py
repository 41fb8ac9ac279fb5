"""Checks of a data set: the codes of findings, and the code that reports them.

``survey.py`` is ``samadapt check``. ``refusals.py`` and ``empty_dataset.py`` stop a run,
``class_values.py``, ``mask_values.py``, ``palettes.py``, ``leaks.py`` and ``quality.py`` look at
the data, and ``training_record.py`` and ``resumed_run.py`` compare them with earlier runs.
"""
