"""A campaign against everything that metagrad reads: files are mutated, runs are killed, caches are raced for.

==================================  =================================================================
``python -m tests.campaign.mutate``  one file of each format is changed, then a command reads it
``python -m tests.campaign.kill``    a run is killed at random moments, resumed, and compared to the bit
``python -m tests.campaign.race``    processes and threads use one empty cache for the first time
==================================  =================================================================

Each draws from a seed, prints what it came to, and exits with 1 if anything went wrong. Run them from the root of the
checkout.
"""
