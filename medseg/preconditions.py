"""What is refused before work begins, because it could only fail or do harm later."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.dataset import Dataset, Split, Splits
from medseg.domains.base import find_domain
from medseg.errors import ModelError, PlanError, Problem, UsageError
from medseg.fingerprint import Fingerprint
from medseg.io.images import label_suffix
from medseg.plans import Plan, edit_problems, is_field
from medseg.record import check_writable
from medseg.workspace import RunFolder, Workspace

PICTURES = (".png", ".bmp")  # formats whose label maps hold three bytes at most
HIGHEST = 255  # class value that then has room above the number of an object


def check_workspace(workspace: Workspace, found: Dataset) -> None:
    """Refuse a workspace that is the dataset itself, belongs to another one, or cannot be written. Raises UsageError or ResourceError."""
    root, data = workspace.root.resolve(), found.root.resolve()
    files = (file for case in found.cases for file in (*case.images, case.label) if file is not None)
    if (
        root == data
        or (root.name == "workspace" and root.parent == data)
        or any(root.is_relative_to(f) for f in {f.parent for f in files} - {data})
    ):
        raise UsageError.of(
            "the output would lie among the files of the dataset",
            where=str(workspace.root),
            fix="Choose another folder for -o.",
        )
    if not workspace.dataset_file.is_file():
        check_writable(workspace.root)
        return
    try:
        present = workspace.dataset()
    except PlanError:
        raise UsageError.of(
            "holds a dataset.json that medseg did not write", where=str(workspace.root), fix="Choose another folder for -o."
        ) from None
    before, now = {c.id for c in present.cases}, {c.id for c in found.cases}
    if before.isdisjoint(now) or (present.name != found.name and before != now):  # a dataset may grow, shrink, or be renamed
        raise UsageError.of(
            "belongs to another dataset",
            where=str(workspace.root),
            found=f"dataset '{present.name}' with {len(before)} cases such as '{min(before)}'",
            expected=f"'{found.name}' with {len(now)} cases such as '{min(now)}'",
            fix="Choose another folder for -o.",
        )


def check_one_plan(folder: Path) -> None:
    """Refuse a folder of plans, and a dataset, where a model folder or a plan is asked for. Raises UsageError."""
    inside = Workspace(folder)
    if RunFolder(folder).plan_file.is_file():
        return
    others = (inside.dataset_file, inside.fingerprint_file, inside.splits_file)
    plans = sorted(file.name for file in folder.glob("*.json") if file not in others) if inside.fingerprint_file.is_file() else []
    if plans:
        raise UsageError.of("is a folder of plans", where=str(folder), expected="one of them: " + ", ".join(plans))
    if inside.dataset_file.is_file():
        raise UsageError.of(
            "is a dataset, and holds no plan",
            where=str(folder),
            fix=f"Run `medseg plan {shlex.quote(str(folder))} -o PLANS` first, and pass one of its plans, e.g. PLANS/3d.json.",
        )


def read_plan(file: Path) -> Plan:
    """The plan that a user gave. Raises UsageError for a folder, PlanError for anything else that is no plan."""
    if file.is_dir():
        check_one_plan(file)
        model = RunFolder(file).plan_file.is_file()
        raise UsageError.of(
            "is a model folder" if model else "is a folder without plans",
            where=str(file),
            expected="a plan file, e.g. PLANS/3d.json",
            fix="" if model else "Run `medseg plan DATASET -o PLANS` first.",
        )
    return Plan.load(file)


def check_apart(out: Path, *inputs: Path) -> None:
    """Refuse to write among the files that are read. Raises UsageError."""
    for folder in inputs:
        if out.resolve() == folder.resolve():
            raise UsageError.of("the output would lie among the inputs", where=str(out), fix="Choose another folder for -o.")


def check_continuation(
    folder: RunFolder, chosen: Plan, found: Dataset, fingerprint: Fingerprint, configuration: str | None, edits: Mapping[str, str]
) -> None:
    """Refuse to go on with a run of other data, or of another plan than the wanted one. Raises ModelError."""
    if chosen.data.digest != fingerprint.digest:
        raise ModelError.of(
            "is a run of other data",
            where=str(folder.root),
            found=f"dataset '{chosen.data.name}', digest {chosen.data.digest}",
            expected=f"'{found.name}', digest {fingerprint.digest}",
            fix="Choose another folder for -o.",
        )
    if configuration not in (None, chosen.name) or chosen.edited(dict(edits)).content_digest() != chosen.content_digest():
        raise ModelError.of(
            "has begun with another plan",
            where=str(folder.root),
            found=f"configuration '{chosen.name}' without the wanted changes",
            expected=", ".join([configuration or chosen.name, *(f"{k}={v}" for k, v in edits.items())]),
            fix="Choose another folder for -o.",
        )


def check_same_splits(folder: RunFolder, splits: Sequence[Split]) -> None:
    """Refuse a stage of a cascade that left out other cases than the next one will. Raises ModelError."""
    if Splits.load(folder.splits_file).folds != tuple(splits):
        raise ModelError.of(
            "was cross-validated with other folds",
            where=str(folder.splits_file),
            expected="those of the model that takes its predictions, which otherwise would learn from cases that it is scored on",
            fix="Choose another output folder, so that both are trained with the same folds.",
        )


def unseen(chosen: Plan, given: Splits | None) -> tuple[str, ...]:
    """Of a cascade, the training cases that none of the user's folds leaves out: a stage before it would only predict what it has seen."""
    if not chosen.previous or given is None:
        return ()
    seen = {case for split in given.folds for case in split.val}
    return tuple(sorted({case for split in given.folds for case in split.train} - seen))


def check_cascade(chosen: Plan, given: Splits | None) -> None:
    """Refuse a cascade where the user's folds do not leave out every case that they train on. Raises PlanError."""
    if cases := unseen(chosen, given):
        assert given is not None
        raise PlanError.of(
            f"a cascade cannot be trained with these folds: {len(cases)} training case{'s are' if len(cases) > 1 else ' is'} left out by none, "
            f"so '{chosen.previous}' cannot predict {'them' if len(cases) > 1 else 'it'} unseen",
            where=f"plan '{chosen.name}'",
            found=f"{', '.join(cases[:5])}{' ...' if len(cases) > 5 else ''} in {given.source or 'splits.json'}",
            expected="folds that together leave out every case that they train on",
            fix="Train another configuration, or use splits that cross-validate.",
        )


def check_begun(folder: RunFolder, present: Sequence[str], names: Sequence[str], several: bool) -> None:
    """Refuse to go on with other configurations than those with which a run has begun. Raises ModelError."""
    many = folder.configurations.is_dir()
    if many and not several:
        raise ModelError.of(
            "is a run of several configurations",
            where=str(folder.root),
            found=", ".join(present),
            fix="Pass --folds all to go on with it, or choose another folder for -o.",
        )
    if not many and folder.selection_file.is_file():
        raise ModelError.of("holds a model that was selected of trained ones", where=str(folder.root), fix="Choose another folder for -o.")
    if names and set(names) != set(present) and (many or len(names) > 1):
        raise ModelError.of(
            "has begun with other configurations",
            where=str(folder.root),
            found=", ".join(present),
            expected=", ".join(names),
            fix="Choose another folder for -o.",
        )


def check_length(seconds: float | None, epochs: int | None) -> None:
    """Refuse two lengths at once. Raises UsageError."""
    if seconds is not None and epochs is not None:
        raise UsageError.of("--time and --epochs contradict each other", fix="Give one of them.")


def check_folds(folds: Sequence[int | None] | str) -> None:
    """Refuse anything but different folds, None among them, or "all". Raises UsageError."""
    if folds == "all":
        return
    if isinstance(folds, str) or not folds or len(set(folds)) != len(folds) or any(f is not None and f < 0 for f in folds):
        raise UsageError.of("not folds", where="--folds", found=repr(folds), expected="different numbers from 0 on, none, or all")


def check_configurations(names: Sequence[str], several: bool) -> None:
    """Refuse several configurations, or one twice, where folds do not decide between them. Raises UsageError."""
    if len(set(names)) < len(names) or (len(names) > 1 and not several):
        raise UsageError.of(
            "not configurations to train",
            where="--configuration",
            found=", ".join(names),
            expected="different ones" if several else "one",
            fix="" if several else "Pass --folds all to train several and to select the best.",
        )


def check_fold_count(chosen: Plan, given: Splits | None) -> None:
    """Refuse a plan, edited by hand, whose folds are not as many as the user's splits have. Raises PlanError."""
    if given is not None and chosen.training.folds != len(given.folds):
        raise PlanError.of(
            "the plan and the splits have different numbers of folds",
            where=f"plan '{chosen.name}', field 'training.folds'",
            found=str(chosen.training.folds),
            expected=f"{len(given.folds)}, as in {given.source}",
            fix="Leave the field as it is, or plan with other splits.",
        )


def check_outputs(chosen: Plan, dataset: Dataset) -> None:
    """Refuse a plan whose predictions the format of the images cannot hold: codes of objects are colours in pictures. Raises PlanError."""
    labels, suffix = chosen.data.labels, label_suffix(dataset.cases[0].images[0]).lower()
    highest = max(labels.written)
    if labels.things and labels.given == "codes" and suffix in PICTURES and highest > HIGHEST:
        raise PlanError.of(
            "objects of classes with such high values do not fit into pictures",
            where=f"dataset '{dataset.name}'",
            found=f"class '{labels.names[labels.written.index(highest)]}' of value {highest}; {suffix}",
            expected=f"values up to {HIGHEST}, or a format of 32 bits",
            fix="Number the classes anew, or convert the images to .tif.",
        )


def check_network(task: str, network: str | None) -> None:
    """Refuse a task or network that nobody offers before data are read. Raises PlanError."""
    from medseg.tasks.base import chosen_network, find_task

    find_task(task)
    chosen_network(task, network)


def check_wishes(
    found: Dataset, names: Sequence[str], edits: Mapping[str, str], task: str | None, network: str | None, prefixed: bool = False
) -> None:
    """Refuse configurations that the domain never makes, and edits that no plan could take, before data are read. Raises PlanError.

    Args:
        names: of configurations.
        edits: as in `Plan.edited`.
        task: None is the dataset's own.
        prefixed: a field may begin with the name of a configuration, as in `planning.editing.edit_plans`.
    """
    from medseg.tasks.base import chosen_network, find_task

    wanted = task or found.task
    drafts = find_domain(found.domain).configurations
    known = dict(drafts) | {f"{name}_{own}": axes for name, axes in drafts.items() for own in find_task(wanted).networks}
    unknown = ", ".join(f"'{name}'" for name in names if name not in known)
    problems = [Problem("no such configuration", "--configuration", unknown, f"of {', '.join(known)}")] if unknown else []
    fields: dict[str, str] = {}
    for path, text in edits.items():
        name, _, rest = path.partition(".")
        if not prefixed or not rest or is_field(name):
            fields[path] = text
        elif name not in known:
            problems.append(Problem(f"no configuration '{name}'", "--edit", f"'{path}={text}'", f"one of {', '.join(known)}"))
        else:
            fields[rest] = text
            if rest == "window" and (axes := _entries(text)) not in (None, known[name]):
                expected = f"{known[name]}, one for each axis"
                problems.append(Problem(f"not a window of '{name}'", "--edit", f"'{path}={text}', {axes} numbers", expected))
    problems += edit_problems(
        fields, {"space": found.domain, "target": wanted, "network": chosen_network(wanted, network)}, "--edit" if prefixed else "--set"
    )
    if problems:
        raise PlanError(problems)


def _entries(text: str) -> int | None:
    """How many values a JSON list has; None where it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return len(value) if isinstance(value, list) else None


def check_fold_numbers(folds: Sequence[int | None] | str, folder: RunFolder, found: Dataset) -> None:
    """Refuse a fold beyond the last of a run that has begun, or will, before data are read. Raises UsageError."""
    from medseg.planning.rules import cross_validation

    count = Plan.load(folder.plan_file).training.folds if folder.plan_file.is_file() else cross_validation(found).count
    beyond = [] if isinstance(folds, str) else [str(fold) for fold in folds if fold is not None and fold >= count]
    if beyond:
        raise UsageError.of(
            "there is no such fold",
            where="--folds",
            found=", ".join(beyond),
            expected=f"{f'0 to {count - 1}' if count > 1 else '0'}, or none",
        )


def check_memory(chosen: Plan) -> float:
    """Refuse a plan, edited by hand, that asks for more than its budget: training would tell only after everything is prepared.

    Returns:
        GiB at the peak of one training step, as predicted for the plan as it is.

    Raises:
        PlanError: measured on the real network without values.
    """
    from medseg.planning.memory import training_memory

    needed = training_memory(chosen)
    if needed > chosen.memory.budget * 1.01:
        raise PlanError.of(
            "one training step needs more memory than the plan allows",
            where=f"plan '{chosen.name}', fields 'window', 'training.batch_size', 'network'",
            found=f"{needed:.1f} GiB for window {list(chosen.window)} and batch {chosen.training.batch_size}",
            expected=f"at most memory.budget, {chosen.memory.budget:g} GiB",
            fix="Use a smaller window or batch, or plan again with --memory.",
        )
    return needed
