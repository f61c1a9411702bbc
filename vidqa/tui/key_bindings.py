"""From the list of actions to Textual's bindings."""

from textual.binding import Binding, BindingType

from vidqa.tui.bindings import Action, Place, actions_in

_SHOWN_KEYS = {"left_square_bracket": "[", "right_square_bracket": "]"}


def bindings_for(place: Place) -> list[BindingType]:
    """The bindings of one part of the screen; each can be remapped by its id."""
    return [_binding(action) for action in actions_in(place)]


def _binding(action: Action) -> Binding:
    return Binding(
        action.keys,
        action.run,
        action.name,
        show=action.shown,
        key_display=_SHOWN_KEYS.get(action.keys),
        priority=action.priority,
        tooltip=action.tooltip,
        id=action.id,
    )
