"""Few labels: samadapt beside a U-Net from scratch, at equal cost, without prompts.

    python -m benchmarks.few_labels run --data PATH     # train what is missing, append a row each
    python -m benchmarks.few_labels status --data PATH  # which cells are measured
    python -m benchmarks.few_labels table               # write the tables and figure of the docs

``domains`` holds the data sets and their fixed held-out parts, ``arms`` the command lines that are
compared, ``plan`` the cells in their order. ``trial`` runs one cell and ``rows`` keeps the results.
``scores`` averages and compares them, and ``page`` and ``figure`` write docs/explanation/.
"""
