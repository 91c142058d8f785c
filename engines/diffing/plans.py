"""Which plans carry over, which have to be compiled again, and because of what in their recipes.

A plan carries over when its recipe is the same: the recipe names everything its bytes are made of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from engines.diffing import changes
from engines.diffing.changes import Change
from engines.diffing.views import ABSENT, View
from planyard.core.digest import short
from planyard.core.matrix import PLAN_BACKENDS, Backend
from planyard.core.results import PlanRecord
from planyard.core.units import format_bytes

SUBJECTS = {
    "backend": "backend of the plans",
    "builder_image": "compiler image",
    "built_on": "machine of the compiler",
    "conversion": "conversion of the model",
    "flags": "builder flags",
    "optimization_level": "optimization level",
    "plugins": "plugins",
    "precision": "precision",
    "schema": "schema of the recipes",
    "script": "compiler script",
    "sm_targets": "SM targets",
    "tactic_sources": "tactic sources",
    "timing_cache": "timing cache",
    "version": "compiler version",
    "workspace_bytes": "compiler workspace",
}
"""Fields of a recipe by the name a change of them gets; `model` and `profile` name theirs."""
_FOLLOWS = frozenset({"builder_image", "script", "conversion"})
"""Fields that change along with others: with the compiler, its image does."""
_GREW = 1.1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both sides, and what their plans have in common. Cells are without their image here."""

    before: View
    after: View

    @cached_property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs, by name, of both sides."""
        return tuple(gpu for gpu in self.before.gpus if gpu in self.after.gpus)

    @property
    def backend(self) -> Backend | None:
        """What serves now; where the second side does not tell, what served before."""
        return self.after.backend or self.before.backend

    @property
    def serves_plans(self) -> bool:
        """Whether what serves now needs plans."""
        return self.backend in PLAN_BACKENDS

    @property
    def other_backend(self) -> bool:
        """Whether it is known that another backend serves now: then no plan carries over."""
        return self.before.backend is not None and self.before.backend != self.backend

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """The cells of both sides."""
        return tuple(cell for cell in self.before.cells if cell in self.after.cell_set)

    @cached_property
    def differing(self) -> dict[str, dict[str, tuple[object, object]]]:
        """The leaves of the recipes that differ, for each cell with another recipe now."""
        return {
            cell: differing_leaves(plan.inputs, self.after.plans[cell].inputs)
            for cell, plan in self.before.plans.items()
            if cell in self.after.plans and plan.recipe != self.after.plans[cell].recipe
        }

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """The cells of the second side whose plan was compiled for the first one already."""
        recipes = {plan.recipe for plan in self.before.plans.values()}
        return tuple(cell for cell, plan in self.after.plans.items() if plan.recipe in recipes)

    @cached_property
    def times(self) -> dict[str, float]:
        """How long the last build took for the plan of each cell, or for plans like it."""
        known = {cell: plan.compile_seconds for cell, plan in self.before.plans.items()}
        known |= {cell: plan.compile_seconds for cell, plan in self.after.plans.items()}
        found = dict(known)
        for cell in self.after.cells:
            if cell not in known and (like := _alike(cell, known)):
                found[cell] = sum(like) / len(like)
        return found

    def id_of(self, cell: str) -> str:
        """The whole id of a cell, with the image it is in now."""
        side = self.after if cell in self.after.cell_set else self.before
        return f"{side.newest.image_name}/{cell}"

    def ids(self, cells: Collection[str]) -> tuple[str, ...]:
        """The whole ids of cells, sorted."""
        return tuple(sorted(self.id_of(cell) for cell in cells))

    def work(self, *, rebuild: Collection[str] = (), validate: Collection[str] = ()) -> str:
        """What has to be done again, in words."""
        return changes.work(
            rebuild=rebuild,
            validate=validate,
            plans=self.before.plans.keys() | self.after.plans.keys(),
            seconds=changes.seconds_of(rebuild, self.times),
        )


def _alike(cell: str, times: Mapping[str, float]) -> list[float]:
    """The times of the same model, profile and precision on other GPUs; else of the same model."""
    on_others = cell.rpartition("/")[0] + "/"
    model = cell.partition("/")[0] + "/"
    for start in (on_others, model):
        if found := [seconds for each, seconds in times.items() if each.startswith(start)]:
            return found
    return []


def recipe_changes(pair: Pair, *, explained: Mapping[str, set[str]]) -> list[Change]:
    """What differs in recipes, but leaves (by cell) that a change of a pin has explained."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for cell, leaves in pair.differing.items():
        fields: dict[str, dict[str, tuple[object, object]]] = {}
        for leaf, values in leaves.items():
            if leaf not in explained.get(cell, ()):
                fields.setdefault(leaf.partition(".")[0], {})[leaf] = values
        if not leaves:  # two recipes of the same inputs: one of the digests is not theirs
            fields["recipe"] = {"recipe": _recipes(pair, cell)}
        for field, found in fields.items():
            subject = _subject(field, pair.after.plans[cell])
            before, after = (_side(found, field, side) for side in (0, 1))
            groups.setdefault((field, subject, before, after), []).append(cell)
    return [
        _recipe_change(pair, key, cells, explained=explained)
        for key, cells in sorted(groups.items(), key=lambda item: item[0][0] in _FOLLOWS)
    ]


def _recipe_change(
    pair: Pair,
    key: tuple[str, str, str, str],
    cells: list[str],
    *,
    explained: Mapping[str, set[str]],
) -> Change:
    field, subject, before, after = key
    text = pair.work(rebuild=cells)
    if field in _FOLLOWS and all(_has_another_reason(pair, cell, explained) for cell in cells):
        text = f"{changes.count(len(cells), 'plan')} to rebuild, for other reasons as well"
    return Change(
        kind="recipe",
        subject=subject,
        before=before,
        after=after,
        consequence=text,
        severity="attention",
        gpus=tuple(sorted({cell.rpartition("/")[2] for cell in cells})),
        cells=pair.ids(cells),
        rebuild=pair.ids(cells),
        seconds=changes.seconds_of(cells, pair.times),
        why="the recipe of a plan names it",
        source="engines/recipe.py",
    )


def _has_another_reason(pair: Pair, cell: str, explained: Mapping[str, set[str]]) -> bool:
    if explained.get(cell):
        return True
    return any(leaf.partition(".")[0] not in _FOLLOWS for leaf in pair.differing[cell])


def _recipes(pair: Pair, cell: str) -> tuple[object, object]:
    return pair.before.plans[cell].recipe, pair.after.plans[cell].recipe


def _subject(field: str, plan: PlanRecord) -> str:
    if field == "model":
        return f"model {plan.model}"
    if field == "profile":
        return f"profile {plan.profile} of {plan.model}"
    return SUBJECTS.get(field, field.replace("_", " "))


def _side(found: Mapping[str, tuple[object, object]], field: str, side: int) -> str:
    """The values of one side: `max [4]`, or the value alone where the field is one."""
    texts = []
    for leaf, values in sorted(found.items()):
        name = leaf.removeprefix(field).removeprefix(".")
        value = values[side]
        text = ABSENT if value is ABSENT else changes.as_text(value)
        texts.append(f"{name} {text}".strip())
    return ", ".join(texts)


def differing_leaves(
    before: Mapping[str, object], after: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """The dotted leaves that differ, with both values; `ABSENT` where one side has none."""
    here, there = dict(_leaves(before, "")), dict(_leaves(after, ""))
    return {
        name: (here.get(name, ABSENT), there.get(name, ABSENT))
        for name in sorted(here.keys() | there.keys())
        if here.get(name, ABSENT) != there.get(name, ABSENT)
    }


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def plan_changes(pair: Pair, *, rebuild: Collection[str]) -> list[Change]:
    """Plans that were compiled again, are missing, are new, or weigh more; `rebuild` is known."""
    before, after = pair.before.plans, pair.after.plans
    same = [cell for cell in before if cell in after and before[cell].recipe == after[cell].recipe]
    again = [cell for cell in same if before[cell].digest != after[cell].digest]
    missing = [cell for cell in pair.cells if cell in before and cell not in after]
    missing = [cell for cell in missing if cell not in rebuild and pair.serves_plans]
    more = [cell for cell in pair.cells if cell not in before and cell in after]
    found = []
    if again:
        shown = [short(side[again[0]].digest) for side in (before, after)]
        found.append(
            _plan_change(
                pair,
                "plan bytes",
                (*(shown if len(again) == 1 else ("one build", "another build")),),
                validate=again,
                why="the same recipe compiled twice gives other bytes",
            )
        )
    if missing:
        found.append(_plan_change(pair, "plans", ("stored", ABSENT), rebuild=missing))
    if more:
        text = f"{changes.count(len(more), 'plan')} more"
        found.append(_plan_change(pair, "plans", (ABSENT, "stored"), cells=more, text=text))
    return found + _weight_change(pair)


def _plan_change(
    pair: Pair,
    subject: str,
    values: tuple[str, ...],
    *,
    rebuild: Collection[str] = (),
    validate: Collection[str] = (),
    cells: Collection[str] = (),
    text: str = "",
    why: str = "",
) -> Change:
    concerned = (*rebuild, *validate, *cells)
    severity = "breaks" if rebuild else "attention" if validate else "none"
    return Change(
        kind="plans",
        subject=subject,
        before=values[0],
        after=values[1],
        consequence=text or pair.work(rebuild=rebuild, validate=validate),
        severity=severity,  # type: ignore[arg-type]
        gpus=tuple(sorted({cell.rpartition("/")[2] for cell in concerned})),
        cells=pair.ids(concerned),
        rebuild=pair.ids(rebuild),
        validate=pair.ids(validate),
        seconds=changes.seconds_of(rebuild, pair.times),
        why=why,
    )


def _weight_change(pair: Pair) -> list[Change]:
    """What the plans that both sides have weigh, all together."""
    both = [cell for cell in pair.before.plans if cell in pair.after.plans]
    sizes = [sum(view.plans[c].size_bytes for c in both) for view in (pair.before, pair.after)]
    texts = [format_bytes(size) for size in sizes]
    if sizes[0] == sizes[1]:
        return []
    if texts[0] == texts[1]:
        texts = [f"{size} B" for size in sizes]
    grew = sizes[1] > _GREW * sizes[0]
    return [
        Change(
            kind="plans",
            subject=f"size of {changes.count(len(both), 'plan')}",
            before=texts[0],
            after=texts[1],
            consequence="more to pull and to load" if sizes[1] > sizes[0] else "less to pull",
            severity="attention" if grew else "none",
            cells=pair.ids(both),
        )
    ]
