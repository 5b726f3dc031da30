"""What is pasted into the prompt may hold invisible controls: shown there as pictures of them.

Knows nothing of what the line is for; imported with prompt_toolkit, when it is needed.
"""

from __future__ import annotations

import bisect
import itertools

from prompt_toolkit.formatted_text import OneStyleAndTextTuple
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.layout.utils import explode_text_fragments

from apdcli.render.safe import visible


class ControlsShown(Processor):
    """Bidirectional and other invisible controls as ⟦U+202E⟧; what is sent stays what was pasted.

    The C0 and C1 controls are prompt_toolkit's own: ^[ and the like.
    """

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """See prompt_toolkit."""
        before = explode_text_fragments(transformation_input.fragments)
        after = [_shown(fragment) for fragment in before]
        ends = list(itertools.accumulate(len(fragment[1]) for fragment in after))
        if len(after) == (ends[-1] if ends else 0):  # every character is one still
            return Transformation(transformation_input.fragments)
        starts = [0, *ends]
        last = len(after)
        return Transformation(
            after,
            source_to_display=lambda i: starts[i] if i < last else starts[last] + i - last,
            display_to_source=lambda i: (
                bisect.bisect(starts, i) - 1 if i < starts[last] else last + i - starts[last]
            ),
        )


def _shown(fragment: OneStyleAndTextTuple) -> OneStyleAndTextTuple:
    style, text = fragment[0], fragment[1]
    picture = text if text in Char.display_mappings else visible(text)
    return fragment if picture == text else (f"{style} class:control-character ", picture)
