"""The editing of images as it is measured and estimated: by method, networks, device and resolution."""

from __future__ import annotations

from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings.edits import EditVariant, StepVariant


def about(variant: EditVariant) -> str:
    """Return what decides how long an edit takes: the methods of its steps, and the steps of descents."""

    def step(each: StepVariant) -> str:
        if each.method != "optimization":
            return each.method
        wanted = each.optimization_parameters()
        return f"optimization {wanted['mode']} {wanted['space']} {wanted['steps']}"

    return " + ".join(map(step, variant.steps))


def edit_work(run: Run, plan: EditPlan, images: int, seconds: float = 0.0, size: int = 0) -> Spent:
    """Return the editing of some images as it is measured and estimated."""
    variant = plan.prepared.variant
    optimized = [step.optimization_parameters() for step in variant.steps if step.optimization]
    # a chunk that is not full takes as long as a full one
    chunk = max((each["chunk"] for each in optimized), default=1)

    # a JPEG is not what a PNG costs
    written = "".join(f" {name} {value}" for name, value in plan.saving.parameters().items())
    found = work(run, "edit", about(variant) + written, -(-images // chunk) * chunk, seconds, size)
    return found.model_copy(update={"items": images})


def work(run: Run, kind: str, about: str, items: int, seconds: float = 0.0, size: int = 0) -> Spent:
    """Return the drawing or editing of some images as it is measured and estimated: per image and edit."""
    judges = "".join(f"+{name}" for name in ("identity", "perceptual") if getattr(run.models, name))
    return Spent(
        kind=kind, about=about + judges, device=device_name(run.device),
        resolution=run.generator.image_size[0], units=items, seconds=seconds, size=size,
    )  # fmt: skip
