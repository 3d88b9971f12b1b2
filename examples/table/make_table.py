"""Write the table of this example: `x`, 6 numbers a row, and `y`, a smooth function of them. No randomness: the rows
are a Kronecker sequence (multiples of irrational numbers, modulo 1), which fills the cube evenly.

    python make_table.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = 6
ROWS = {"train": 4096, "validation": 512}
ROW_GROUP_ROWS = 512


def table_of(first: int, rows: int) -> pa.Table:
    """Rows `first` to `first + rows` of the endless table."""
    primes = np.array([2, 3, 5, 7, 11, 13])[:FEATURES]
    x_BF = np.arange(first + 1, first + rows + 1)[:, None] * np.sqrt(primes) % 1.0 * 2 - 1
    y_B = np.sin(3 * x_BF[:, 0]) + x_BF[:, 1] * x_BF[:, 2] - x_BF[:, 3] ** 2 + 0.5 * x_BF[:, 4]
    x = pa.FixedSizeListArray.from_arrays(pa.array(x_BF.astype(np.float32).reshape(-1)), FEATURES)
    return pa.table({"x": x, "y": y_B.astype(np.float32)})


def main(folder: Path) -> None:
    first = 0
    for name, rows in ROWS.items():
        path = folder / f"{name}.parquet"
        pq.write_table(table_of(first, rows), path, row_group_size=ROW_GROUP_ROWS, compression="none")
        first += rows


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
