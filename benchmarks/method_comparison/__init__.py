"""Every PEFT method at three sizes on the same data, and what came of it.

    python -m benchmarks.method_comparison run ROOT    # train what is missing, and write it down
    python -m benchmarks.method_comparison report      # the README's table and its plot

``plan`` says what is trained, ``trial`` trains one of them, ``report`` shows all.
"""
