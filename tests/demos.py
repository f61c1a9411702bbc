"""The trained Qwen2-VL demo model, which knows shapes but no times; the one that vidqa ships is another."""

from pathlib import Path

QWEN2_DEMO = Path(__file__).parent / "fixtures" / "qwen2-vl-demo"
