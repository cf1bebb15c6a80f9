"""Classes of images: labels, and the classifier that guides to them."""

from batchgen.generation.rules.draft import Draft, Problems
from batchgen.models.compatibility import read_classifier

__all__ = ["class_rule"]


def class_rule(draft: Draft) -> Problems:
    """A label where the model or a classifier wants one, and one that they know."""
    values, model = draft.values, draft.model
    wrong = draft.parsed.spoiled | {column for column, _ in draft.problems}
    if "class_label" not in values or not wrong.isdisjoint({"class_label", "classifier"}):
        return
    label, found = values["class_label"], values["classifier"]
    known = {f"{model.name!r}": model.classes} if model.classes else {}
    if found is not None:
        facts = read_classifier(found["path"])
        known["the classifier"] = facts.classes
        if {values["width"], values["height"]} != {facts.image_size}:
            size = f"{values['width']}x{values['height']}"
            yield "classifier", f"reads images of {facts.image_size} pixels a side, and the row's is {size}"
    else:
        yield from draft.drop(("classifier", "classifier_scale"), "means nothing without a classifier")
    if label is None and known:
        name, classes = next(iter(known.items()))
        yield "class_label", f"is null, but {name} wants one from 0 to {classes - 1}"
    elif label is not None and found is None and not known:
        yield "class_label", f"means nothing to {model.name!r}; name a classifier, or leave it null"
    for name, classes in known.items():
        if label is not None and label >= classes:
            yield "class_label", f"is {label}; {name} knows 0 to {classes - 1}"
