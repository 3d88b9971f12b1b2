"""A run for a platform: one container, one job file, one trainer of somebody else's, one truthful ending.

Here: what stands between a platform and an ordinary run. The environment and the job file are settled or refused, the
capability token is checked, the lease is held, inputs are fetched, what the run commits is handed out and uploaded, and
the ending is told once. Not here: the training, which is the runner's, in a process of its own and without secrets;
how bytes travel (trn.transfer); how a door keeps its run (trn.doors).
"""
