"""What a model that was trained on drawn clips alone can know: the file `training_domain.json` of its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vidqa.models.config_validation import JsonSection, ListOf, Number, Text, Values, read_object

DOMAIN_FILE = "training_domain.json"
_LIMITS = ("background_color", "stray_color", "shape_share", "spread", "roughness", "hard_edges", "sharpness")
_PAINT = ListOf(Number(0, 255), 3, 3)


@dataclass(frozen=True, slots=True)
class TrainingDomain:
    """The clips that a model was trained on, and the limits within which their pictures lie.

    `knows` names them, as in "drawn shapes". `limits` has the largest value of each statistic that
    `engine/domain_check.py` measures, `paints` the colors (red, green, blue) of shapes in levels of 255. A video is out
    of the domain if more than `unlike_share` of its pictures exceed a limit.
    """

    knows: str
    paints: tuple[tuple[float, float, float], ...]
    limits: Mapping[str, float]
    unlike_share: float

    def exceeded(self, statistics: Mapping[str, float]) -> bool:
        """Return whether a picture exceeds a limit."""
        return any(statistics[name] > limit for name, limit in self.limits.items())


def read_domain(folder: Path) -> TrainingDomain | None:
    """Return the domain of a model's folder, None for a model of real videos; raises ModelError if it is not valid."""
    path = folder / DOMAIN_FILE
    if not path.exists():
        return None
    found = Values(path, "", read_object(path)).checked(
        {
            "knows": Text(60),
            "paints": ListOf(_PAINT, 1, 16),
            "limits": JsonSection(),
            "unlike_share": Number(0, 1),
        }
    )
    rules = dict.fromkeys(_LIMITS, Number(0, 1e6))
    limits = Values(path, "limits", found["limits"]).checked(rules)
    return TrainingDomain(found["knows"], found["paints"], limits, found["unlike_share"])
