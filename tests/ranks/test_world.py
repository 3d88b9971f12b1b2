"""One rule for who is rank 0, whoever has started the processes; and where the ranks meet."""

from __future__ import annotations

import pytest

from trn.errors import UsageError
from trn.ranks import World, meeting_place, read_world

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
MPICH = {"PMI_RANK": "1", "MPI_LOCALRANKID": "1", "PMI_SIZE": "6", "MPI_LOCALNRANKS": "6"}
BATCH = {"SLURM_JOB_ID": "812", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World()),
        ({"PATH": "/bin", "RANK": "", "WORLD_SIZE": " "}, World()),
        (TORCHRUN, World(3, 1, 4, 2)),
        (OPEN_MPI, World(2, 0, 3, 1)),
        (MPICH, World(1, 1, 6, 6)),
        (STEP, World(3, 1, 5, 2)),
        ({**STEP, "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}, World(4, 0, 5, 1)),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "?"}, World(3, 1, 5, 2)),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, World()),
        ({"RANK": "00", "LOCAL_RANK": " 1 ", "WORLD_SIZE": "2"}, World(0, 1, 2, 2)),
    ],
)
def test_each_launchers_variables_are_read(environ: dict[str, str], expected: World) -> None:
    assert read_world(environ) == expected


def test_a_batch_script_is_one_process_although_it_has_a_rank() -> None:
    assert read_world(BATCH) == World()


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({**TORCHRUN, **OPEN_MPI, **MPICH, **STEP}, 3),
        ({**OPEN_MPI, **MPICH, **STEP}, 2),
        ({**MPICH, **STEP}, 1),
        # srun sets these two, and its own say the rest
        ({**STEP, "PMI_RANK": "0", "PMI_SIZE": "5"}, 3),
    ],
)
def test_the_nearest_launcher_counts(environ: dict[str, str], rank: int) -> None:
    assert read_world(environ).rank == rank


@pytest.mark.parametrize(
    ("environ", "name", "found"),
    [
        ({"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK", "found 'one'"),
        ({"RANK": "-1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK", "found '-1'"),
        ({"RANK": "1.0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK", "found '1.0'"),
        ({"RANK": "²", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK", "found '²'"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK", "less than WORLD_SIZE=2, found 2"),
        ({"RANK": "0", "LOCAL_RANK": "7", "WORLD_SIZE": "2"}, "LOCAL_RANK", "less than WORLD_SIZE=2, found 7"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE", "a whole number above 0, found '0'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK", "found nothing, although torchrun has set RANK, WORLD_SIZE."),
        ({"WORLD_SIZE": "2"}, "RANK", "Set RANK, LOCAL_RANK, WORLD_SIZE all, or none of them"),
        ({**STEP, "SLURM_PROCID": "x"}, "SLURM_PROCID", "found 'x'"),
        ({**STEP, "SLURM_LOCALID": ""}, "SLURM_LOCALID", "although Slurm has set SLURM_PROCID, SLURM_STEP_NUM_TASKS."),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID", "although MPI has set PMI_RANK, PMI_SIZE."),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE", "found 'many'"),
    ],
)
def test_what_is_no_place_is_refused_by_name_and_value(environ: dict[str, str], name: str, found: str) -> None:
    with pytest.raises(UsageError) as error:
        read_world(environ)
    assert error.value.where == f"environment variable {name}"
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_the_ranks_meet_where_the_environment_says() -> None:
    assert meeting_place({**TORCHRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}) == ("10.0.0.7", 29500)
    assert meeting_place({**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}) == ("10.0.0.7", 29500)


def test_a_slurm_step_on_one_machine_needs_no_address() -> None:
    one = {**STEP, "SLURM_STEP_NUM_NODES": "1"}
    address, port = meeting_place(one)
    assert address == "127.0.0.1"
    assert 15000 <= port < 30000
    assert meeting_place({**one, "SLURM_PROCID": "0"}) == (address, port)
    assert meeting_place({**one, "SLURM_STEP_ID": "3"})[1] != port
    assert meeting_place({**STEP, "MASTER_ADDR": "node1"}) == ("node1", port)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (STEP, "MASTER_ADDR is not set"),
        (OPEN_MPI, "MASTER_ADDR and MASTER_PORT are not set"),
        ({**OPEN_MPI, "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({**OPEN_MPI, "MASTER_ADDR": "a", "MASTER_PORT": "0"}, "a port from 1 to 65535, found '0'"),
        ({**OPEN_MPI, "MASTER_ADDR": "a", "MASTER_PORT": "http"}, "found 'http'"),
    ],
)
def test_ranks_without_a_meeting_place_are_told_what_to_export(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        meeting_place(environ)
    assert said in str(error.value)
