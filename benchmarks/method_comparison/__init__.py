"""Compare every PEFT method at three sizes on the same data.

    python -m benchmarks.method_comparison run ROOT    # train what is missing and record it
    python -m benchmarks.method_comparison report      # write the table and figures of the docs

``plan`` lists the trainings, ``trial`` runs one, ``summary`` collects them, and ``report`` writes
the page with ``figures``.
"""
