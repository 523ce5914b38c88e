"""Paths and sizes shared by the scripts."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
DEMO_DIR = PROJECT / "models" / "demo"
DRAFT_DIR = PROJECT / "models" / "demo-draft"
WORK_DIR = PROJECT / "build" / "demo_model"  # tokenized data and checkpoints; not part of the project

VOCAB_SIZE = 2048
MAX_POSITIONS = 2048
ROPE_THETA = 10000.0
NORM_EPS = 1e-5

DEMO_SHAPE = {"hidden": 256, "layers": 6, "heads": 4, "kv_heads": 2, "inner": 768}
DRAFT_SHAPE = {"hidden": 256, "layers": 2, "heads": 2, "kv_heads": 1, "inner": 256}
HEAD_DIM = 64
