"""The memory panel's words about a plan, by plain samples: what is compared, and what exceeds it."""

from vidqa.tui.widgets.memory_panel import MemoryPanel, Sample

MIB = 2**20


def panel(process: int, tensors: int | None) -> str:
    """What the panel says of a vision phase that took so many MiB, of 800 planned, 100 of them tensors."""
    shown = MemoryPanel(id="memory")
    shown.plan(800 * MIB, 100 * MIB)
    counted = None if tensors is None else tensors * MIB
    shown.measure(Sample(process * MIB, 0), "vision", process * MIB, counted)
    return shown.render().plain


def test_tensors_are_told_apart_and_a_peak_below_its_plan_needs_no_words() -> None:
    drawn = panel(790, 90)
    assert "790.0 MiB now · 800.0 MiB planned" in drawn and "tensors: 90.0 MiB of 100.0 MiB planned" in drawn
    assert "above plan" not in drawn
    assert "tensors" not in panel(790, None)


def test_a_peak_above_its_plan_is_told_with_its_cause() -> None:
    assert "! 12.0 MiB above plan: the process itself grew beside its tensors" in panel(812, 90)
    assert "! 3.0 MiB above plan: tensors took more than was planned" in panel(812, 103)
    assert "! 12.0 MiB above plan: more is held than was planned" in panel(812, None)


def test_a_new_question_has_no_peak_yet() -> None:
    shown = MemoryPanel(id="memory")
    shown.plan(800 * MIB, 100 * MIB)
    shown.measure(Sample(812 * MIB, 0), "vision", 812 * MIB, 103 * MIB)
    shown.begin()
    assert "above plan" not in shown.render().plain and "tensors" not in shown.render().plain
