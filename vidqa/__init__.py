"""vidqa answers questions about videos with Qwen-VL models, sized to the memory of the machine.

Public names are imported on first use, so that `import vidqa` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.config import EngineConfig
    from vidqa.engine.session import Session
    from vidqa.errors import VidqaError
    from vidqa.types import Answer, Plan, Request, Turn

__version__ = "0.1.0"
__all__ = ["Answer", "EngineConfig", "Plan", "Request", "Session", "Turn", "VidqaError"]

_MODULES = {
    "Answer": "vidqa.types",
    "EngineConfig": "vidqa.config",
    "Plan": "vidqa.types",
    "Request": "vidqa.types",
    "Session": "vidqa.engine.session",
    "Turn": "vidqa.types",
    "VidqaError": "vidqa.errors",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'vidqa' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
