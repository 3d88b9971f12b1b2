"""Bytes between here and elsewhere: one careful HTTP client, and inputs that are fetched whole or not at all.

    Wanted(name, source, sha256) ──fetch──> Fetched(path, sha256, size_bytes)
                                      └──> CACHE/sha256/ab/abcd...   by digest, shared by all runs
    request ──Client──> Answer | Unreachable (ask again later) | Refused (final)

Here: HTTP with a token that goes only where it may, when to ask again, downloads, their cache. Not here: which inputs
a job has and what becomes of them (worker), data files that are read in place from a store (feed), where a journal is
sent (sinks).
"""
