"""What whole runs would do: their steps, looked at one after the other.

Names of what is not there yet follow from their recipes, so nothing has to be computed to look for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect import runtime

from styleclip.flows import engine
from styleclip.flows.estimates import Outlook, StepForecast, Work
from styleclip.flows.steps import looking, table
from styleclip.flows.steps.editing import (
    check_edits,
    choosing_work,
    chosen_by_variant,
    fitted,
    instant_work,
    needs,
    prepare_others,
)
from styleclip.tasks.artifacts import is_complete
from styleclip.tasks.directions import nights, refining, relevance, sampling
from styleclip.tasks.directions.choosing import ChoicePlan, find_choice
from styleclip.tasks.directions.instant import plan_instant
from styleclip.tasks.directions.matching import SeenCodes, plan_matched
from styleclip.tasks.directions.matching import plan as plan_looking
from styleclip.tasks.directions.relevance import RelevancePlan
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.directions.style_directions import (
    PreparedStep,
    TableRef,
    direction_uri,
    find_table,
    plan_direction,
)
from styleclip.tasks.editing import mappers
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.editing.plans import Chosen, EditPlan
from styleclip.tasks.photographs import inversion
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.photographs.inversion import InversionPlan
from styleclip.tasks.running.rates import Rates
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import (
    Choosing,
    Instant,
    Inversion,
    MapperTraining,
    Nightly,
    Relevance,
    Sampling,
    Saving,
)
from styleclip.tasks.settings.edits import (
    MOST_VARIANTS,
    Edit,
    EditStep,
    EditVariant,
    StepVariant,
    all_variants,
    automatic_steps,
    bare,
    replace_steps,
    stand_in,
)


def inverting(run: Run, listed: ImageIndex, settings: Inversion, rates: Rates) -> Outlook:
    """Return what ``invert-images`` would do."""
    planned = inversion.plan(run, listed.photos, settings)
    seen = looking.see_shards(run, planned, listed)
    steps, work, files, size = looking.photographs(run, planned, [], seen, rates)
    about = f"inverts {listed.rows} photographs under {listed.photos}, in {len(listed.shards)} shards"
    return Outlook(about, steps, [work], files, size, [listed.passed_over] if listed.passed_over else [])


def training(run: Run, targets: list[str], settings: MapperTraining) -> Outlook:
    """Return what ``train-mapper`` would do."""
    return looking.trained(run, [mappers.plan(run, target, settings) for target in targets])


# ---- the relevance table -------------------------------------------------------------------------------


def building(
    run: Run,
    sampling_settings: Sampling,
    settings: Relevance,
    *,
    add: int = 0,
    last: str = "",
    nightly: Nightly | None = None,
) -> Outlook:
    """Return what ``build-relevance`` would do."""
    about = table.described(run, settings, add=add, nightly=nightly)
    styles = sampling.plan(run, table.enough(sampling_settings, settings))
    base, note = relevance.plan(run, styles, settings), ""

    # a night that was decided stays so; another one is decided as it would be, and not written down
    if nightly:
        night = nightly.date_of(runtime.flow_run.scheduled_start_time)
        decided = nights.foresee_night(run, base, nightly, night)
        add, last = (decided.samples, decided.last_table) if decided.last_table else (0, "")
        note = f"night {night}: {f'adds {add} samples to {last}' if last else 'starts the table'}"
        if last and not add:
            return Outlook(about, [], [], notes=[f"night {night}: {last} has samples enough, nothing to add"])

    step, work = looking.sampled(run, styles)
    steps, works = [step], [work]
    if add:
        before = refining.find_last_table.fn(run, base, last)
        more, more_work = looking.more_codes(run, styles, before.last, before.last + add)
        steps, works = [*steps, more], [*works, more_work]
        base = relevance.plan(run, styles, replace(settings, first_sample=before.last, samples=add))

    measured, measuring = looking.measured(run, base)
    built = (
        "" if add else f"the table {'is there' if is_complete(base.table) else 'would lie at'}: {base.table}"
    )
    notes = [each for each in (note, built) if each]
    return Outlook(about, [*steps, *measured], [*works, *measuring], notes=notes)


# ---- edits ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Foreseen:
    """The settings of ``edit-images`` that decide what it does."""

    sampling: Sampling
    relevance: Relevance
    inversion: Inversion
    instant: Instant
    choosing: Choosing
    saving: Saving
    table: str = ""
    most_variants: int = MOST_VARIANTS


class Editing:
    """What ``edit-images`` would do.

    Attributes:
        listed: The images.
        inversion: Where their latents lie.
        styles: Sampled codes, if some step needs them.
        looked_at: Those that CLIP looks at, if some step needs that.
        table: The relevance table, if some step needs it; it may not be there yet.
        plans: The edits; one whose strength is still to be chosen stands in with other numbers.
    """

    def __init__(
        self,
        run: Run,
        listed: ImageIndex,
        edits: list[Edit],
        chosen: Sequence[Chosen | None],
        settings: Foreseen,
        others: dict[StepVariant, PreparedStep] | None = None,
    ) -> None:
        """Look at a run.

        Args:
            run: Networks and places.
            listed: The images.
            edits: What is done to them.
            chosen: The images that each edit is for; None for all.
            settings: What else decides what is done.
            others: Steps of other methods than style directions; without them, prompts and steps are tried
                out first, so that what a run would refuse is refused.
        """
        self._run, self.listed, self.settings = run, listed, settings
        self.inversion: InversionPlan = inversion.plan(run, listed.photos, settings.inversion)
        self.styles: SampledStyles | None = None
        self.looked_at: SeenCodes | None = None
        self.table: TableRef | None = None
        self._measured: RelevancePlan | None = None
        self._notes = [listed.passed_over] if listed.passed_over else []

        # what relevance comes from: a table that is given, found or built, or gradients at sampled codes
        edits = fitted(edits, listed, chosen)
        variants = all_variants(replace_steps(edits, stand_in), settings.most_variants, by_image=any(chosen))
        if others is None:
            check_edits(run, variants)
            others = prepare_others(run, variants, settings.sampling)
        codes = settings.sampling
        if needs(variants, "instant"):
            codes = codes.model_copy(update={"codes": max(codes.codes, settings.instant.codes)})
        if needs(variants, "table") and settings.table:
            self.table = engine.run(find_table, run, settings.table)
            self._notes.append(f"takes relevance from the table at {settings.table}")
        elif needs(variants, "table"):
            self.styles = sampling.plan(run, table.enough(codes, settings.relevance))
            planned = self._measured = relevance.plan(run, self.styles, settings.relevance)
            self.table = TableRef(
                relevance=planned.table, statistics=self.styles.statistics, fingerprint=planned.fingerprint
            )
        if needs(variants, "instant") and self.styles is None:
            self.styles = sampling.plan(run, codes)

        if needs(variants, "matched"):
            self.looked_at = plan_looking(run, settings.sampling)

        # plans of edits whose strengths nobody has chosen yet name nothing that could be there
        settled = True
        if automatic_steps(edits):
            found = looking.see_shards(run, self.inversion, listed)
            settled = not any(shard.missing or shard.adopted for shard in found)
        numbered, self._open = self._numbered(edits, settled=settled)
        seen = list[looking.SeenPlan]()
        each = iter(chosen_by_variant(numbered, chosen))
        for edit, waiting in zip(numbered, self._open, strict=True):
            for variant in edit.variants():
                plan = self._plan(variant, others, next(each))
                seen.append(looking.SeenPlan(plan, settled=not waiting))
        self.plans = [each.plan for each in seen]
        self._seen = looking.see_shards(run, self.inversion, listed, seen)

    def _numbered(self, edits: list[Edit], *, settled: bool) -> tuple[list[Edit], list[list[EditStep]]]:
        """Return edits with numbers in place of auto, and of each the steps that wait for their choice."""
        planned = ChoicePlan(
            settings=self.settings.choosing, instant=self.settings.instant, table=self.table,
            styles=self.styles, inversion=self.inversion, shards=self.listed.shards,
            seen=self.looked_at,
        )  # fmt: skip
        open_ = list[list[EditStep]]()
        numbered = list[Edit]()
        for edit in edits:
            missing: list[EditStep] = []

            # a choice is made on inverted images, so it stands only where none is to be inverted any more
            def number(step: EditStep, missing: list[EditStep] = missing) -> EditStep:
                if not step.automatic:
                    return step
                chosen = find_choice(self._run, step, planned) if settled else None
                if chosen is None:
                    missing.append(step)
                return chosen.apply(step) if chosen else stand_in(step)

            numbered += replace_steps([edit], number)
            open_.append(missing)
        return numbered, open_

    def _plan(
        self, variant: EditVariant, others: dict[StepVariant, PreparedStep], chosen: Chosen | None
    ) -> EditPlan:
        prepared = [others.get(step) or self._direction(step) for step in variant.steps]
        edit = PreparedEdit(variant=variant, steps=prepared)
        return planning.plan(self._run, edit, self.inversion, self.settings.saving, chosen)

    def _direction(self, step: StepVariant) -> PreparedStep:
        """Return a step under the name that its direction has, or will have."""
        if step.relevance == "matched" and self.looked_at:
            recipe = plan_matched(self._run, step, self.looked_at)
        elif step.relevance == "table" and self.table:
            recipe = plan_direction(self._run, step, self.table)
        elif self.styles:
            recipe = plan_instant(self._run, step, self.styles, self.settings.instant)
        else:
            raise AssertionError("a step without a table has sampled codes")
        uri = direction_uri(self._run, recipe)
        return PreparedStep(variant=step, uri=uri, fingerprint=recipe.fingerprint, text_norm=0.0)

    def outlook(self, rates: Rates) -> Outlook:
        """Return the steps of the run, with what they would do."""
        run, steps, works, notes = self._run, list[StepForecast](), list[Work](), list(self._notes)
        if self.styles:
            step, work = looking.sampled(run, self.styles)
            steps, works = [step], [work]
        if self._measured:
            measured, measuring = looking.measured(run, self._measured)
            steps, works = [*steps, *measured], [*works, *measuring]
            there = "is there" if is_complete(self._measured.table) else "is built first"
            notes.append(f"the relevance table {there}: {self._measured.table}")

        if self.looked_at:
            step, work = looking.looked_at(run, self.looked_at)
            steps, works = [*steps, step], [*works, work]

        # directions from gradients and choices are tasks of their own, one after the other
        alone = [[instant_work(run, self.settings.instant)] for _ in self.instants()]
        waiting = {bare(step) for choices in self._open for step in choices}
        alone += [[choosing_work(run, self.settings.choosing)] for _ in waiting]
        works += [Work((), 0, [job]) for job in alone]
        if waiting:
            notes.append(
                f"{len(waiting)} strengths are still to be chosen, so of these edits nothing is found done"
            )

        images, work, files, size = looking.photographs(run, self.inversion, self.plans, self._seen, rates)
        works.append(looking.page(images, self.listed.rows))
        about = (
            f"edits {self.listed.rows} photographs under {self.listed.photos} with "
            f"{len(self.plans)} variants of edits, into {run.out}"
        )
        return Outlook(about, [*steps, *images], [*works, work], files, size, notes)

    @property
    def busy(self) -> list[int]:
        """Return the numbers of the shards that have work, or of the first where none has."""
        found = [
            shard.number for shard in self._seen if shard.missing or any(count for count, _, _ in shard.edits)
        ]
        return found or [0]

    @property
    def relevance(self) -> RelevancePlan | None:
        """Return the relevance table that would be found or built."""
        return self._measured

    def instants(self) -> list[StepVariant]:
        """Return the steps whose directions are to be taken from gradients, one of each direction."""
        prepared = {step.uri: step.variant for plan in self.plans for step in plan.prepared.steps}
        wanted = {
            uri: step
            for uri, step in prepared.items()
            if (step.method, step.relevance) == ("global", "instant")
        }
        return [step for uri, step in wanted.items() if not is_complete(uri)]
