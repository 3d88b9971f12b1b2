"""A checkpoint as files that others can use, and the proof that they compute the same.

    rows kept at the start ──prepare_batch──> batches ──trainer.export──> Export
        ──torch.export──> program ──torch.onnx──> file aside ──session, PyTorch on the same inputs──> parity
        ──renamed──> exports/model.onnx + model.onnx.meta.json, reports/onnx_parity.json

Here: ONNX, safetensors and the Hugging Face layout, each with a sidecar that names every file, what it was made of and
what made it; and the comparison that an ONNX file must pass. Not here: which checkpoint (reopen), when in a run, and
what becomes of the run whose file does not pass (runner).

    python -m trn.export RUN_DIR [--checkpoint best|last|NAME] [--format onnx|safetensors|hf]
"""

from trn.export.checkpoint import Exported, export_checkpoint
from trn.export.report import PARITY_NAME, fail_parity, skip_parity
from trn.export.rows import ROWS_NAME, keep_rows, read_rows
from trn.export.sidecar import FORMATS

__all__ = [
    "FORMATS",
    "PARITY_NAME",
    "ROWS_NAME",
    "Exported",
    "export_checkpoint",
    "fail_parity",
    "keep_rows",
    "read_rows",
    "skip_parity",
]
