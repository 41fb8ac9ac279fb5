"""What a GPU is asked in eight minutes: is it exact, how fast, and how much memory does it take?

    python -m benchmarks.gpu

- ``__main__`` measures the rows of ``plan`` in order of worth and writes each at once.
- ``contest`` measures several contenders at one task on one device, in this process.
- ``attention_forms`` compares the forms of attention, ``models`` SAM and its peers, and
  ``whole_runs`` what a user waits for.
- ``wheels`` collects what a machine without internet may lack.

A machine that is lent for some minutes may have no internet, another torch than the pinned one, and
few packages. A row says what it lacks and is skipped, so its modules import them late.
"""
