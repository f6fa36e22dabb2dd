"""Why a batch is not ready: causes, evidence and next steps, from everything that answers.

`explanation.explain` is the plot: the rules that a batch breaks, what keeps every batch waiting,
what the batch itself lacks, and its timeline. `asking.explained` calls it for a person who waits.
"""
