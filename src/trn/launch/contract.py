"""The subprocess contract, for whoever starts a trainer by it.

It is defined below this room (trn.subprocess_contract), since the process that is started reads it, and nothing in that
process may know who started it.
"""

from trn.subprocess_contract import CONTRACT_VERSION, TrainerSubprocessContractV1, read_contract, write_contract

__all__ = ["CONTRACT_VERSION", "TrainerSubprocessContractV1", "read_contract", "write_contract"]
