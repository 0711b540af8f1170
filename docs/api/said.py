"""What settings say of their fields, shown as docstrings: sentence and bounds stand in the annotation."""

from importlib import import_module

import griffe

from styleclip_core.options import Says, annotated_fields, describe_bound


class Said(griffe.Extension):
    """Takes ``Annotated[int, Ge(0), Says("Steps")]`` apart: ``int`` is the type, the rest a sentence."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        """Give a field what its annotation says, in the words of forms and of the command line."""
        said = attr.annotation
        if not isinstance(said, griffe.ExprSubscript) or said.canonical_name != "Annotated":
            return
        settings = getattr(import_module(attr.module.path), attr.parent.name)
        metadata = annotated_fields(settings)[attr.name][1]

        texts = [each.text for each in metadata if isinstance(each, Says)]
        bounds = ", ".join(filter(None, map(describe_bound, metadata)))
        attr.docstring = griffe.Docstring("; ".join(filter(None, [*texts, bounds])) + ".", parent=attr)
        attr.annotation = said.slice.elements[0]
