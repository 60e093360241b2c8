"""The page that `rql-deploy data inspect` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_LINES = 24


def page(report: Mapping[str, Any]) -> str:
    """The figures of `rql_deploy.train.data.report.inspect_store` as text."""
    lengths, rewards, ends, duplicates = (report[key] for key in ("lengths", "rewards", "ends", "duplicates"))
    succeeded = (
        "not said"
        if report["successes"] is None
        else f"{report['successes']} of {report['episodes']} episodes"
    )
    lines = [f"{report['dataset_id']}: {report['task']}", ""]
    if shards := report.get("shards"):
        lines += [
            f"  the first of {shards['shards']:,} shards, which hold {shards['episodes']:,} episodes, "
            f"{shards['rows']:,} rows together:",
            "",
        ]
    lines += [
        f"  episodes     {report['episodes']:,}, {report['rows']:,} rows, {report['hours']:.2f} h at "
        f"{report['control_rate']:g} Hz",
        f"  lengths      {lengths['min']} to {lengths['max']} rows, median {lengths['median']:.0f}; "
        f"gamma {report['gamma']:g} looks about {report['discount_horizon']:.0f} ahead",
        f"  rewards      {_text(rewards['min'])} to {_text(rewards['max'])}, above the least in "
        f"{rewards['rows_above_least']:,} rows "
        f"({rewards['density']:.2%}) of {rewards['episodes_above_least']:,} episodes{_greatest(rewards)}; "
        f"mean return {rewards['return_mean']:.4g}",
        f"  success      {succeeded}",
        f"  task ends    (mask 0) in {ends['rows_with_mask_0']:,} rows of {ends['episodes_with_mask_0']:,} "
        "episodes, "
        f"in the last row of {ends['episodes_ending_in_mask_0']:,}",
        *_intervened(report.get("intervened")),
        *_tasks(report.get("tasks", ())),
        f"  duplicates   {duplicates['episodes']} episodes; {duplicates['rows_like_the_one_before']:,} "
        "observations like the one before",
        f"  validation   {_validation(report.get('validation'))}",
        f"  assumed      {', '.join(report['assumed']) or 'nothing'}",
        f"  memory       {report['memory_mib']:.1f} MiB",
        f"  not read     {', '.join(report.get('left_out', ())) or '-'}",
        f"  hash         {report['content_hash'][:16]}",
        *_origin(report.get("provenance", ())),
        "",
        f"  {'observation':28} {'shape':>8} {'min':>10} {'max':>10} {'mean':>10} {'std':>10} "
        f"{'NaN rows':>9} {'constant':>9}",
    ]
    lines += [
        f"  {_short(f['name']):28} {'x'.join(map(str, f['shape'])):>8} {_text(f['min']):>10} "
        f"{_text(f['max']):>10} {_text(f['mean']):>10} "
        f"{_text(f['std']):>10} {f['rows_not_finite']:>9,} {f['constant_columns']:>9}"
        for f in report["fields"][:MOST_LINES]
    ]
    lines += [
        "",
        f"  {'action':28} {'bounds':>18} {'min':>10} {'max':>10} {'std':>10} {'at bounds':>10} "
        f"{'repeated':>9} {'outside':>9}",
    ]
    lines += [
        f"  {_short(a['name']):28} {'[' + _text(a['low']) + ', ' + _text(a['high']) + ']':>18} "
        f"{_text(a['min']):>10} {_text(a['max']):>10} "
        f"{_text(a['std']):>10} {a['saturated']:>10.1%} {a['repeated']:>9.1%} {a['rows_outside']:>9,}"
        for a in report["actions"][:MOST_LINES]
    ]
    lines += _cameras(report.get("cameras", ()))
    for key, what in (("fields", "observation fields"), ("actions", "action dimensions")):
        if len(report[key]) > MOST_LINES:
            lines.append(f"  ({len(report[key]) - MOST_LINES} more {what}: --json has them)")
    lines += ["", *(f"  warning: {sentence}" for sentence in report["warnings"])]
    if not report["warnings"]:
        lines.append("  no warnings")
    if refused := report.get("training"):
        lines.append(f"  training refuses this data: {refused}")
    lines += [f"  wrote {path}" for path in (*report.get("plots", ()), *filter(None, [report.get("page")]))]
    return "\n".join(lines)


def _intervened(found: Mapping[str, int] | None) -> list[str]:
    if not found or not found["rows"]:
        return []
    where = f"{found['rows']:,} rows of {found['episodes']:,} episodes"
    return [f"  intervened   in {where}: not the policy's actions"]


def _cameras(cameras: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cameras as a table; of a large data set, some episodes were looked at."""
    if not cameras:
        return []
    lines = [
        "",
        f"  {'camera':28} {'size':>9} {'of':>9} {'colours':>8} {'MiB':>8} {'bright':>7} {'black':>7} "
        f"{'frozen':>8} {'longest':>8} {'lag':>9}",
    ]
    for camera in cameras:
        sizes = ["x".join(map(str, camera[key][:2])) for key in ("shape", "camera_size")]
        rows = camera["rows_looked_at"]
        lag = "-" if camera["lag_rows"] is None else f"{camera['lag_rows']:+d} rows"
        lines.append(
            f"  {_short(camera['name']):28} {sizes[0]:>9} {sizes[1]:>9} "
            f"{camera['colour_order'] + ('?' if camera['assumed'] else ''):>8} {camera['mib']:>8.1f} "
            f"{camera['brightness']:>7.0%} {camera['black_rows'] / rows:>7.1%} "
            f"{camera['frozen_rows'] / rows:>8.1%} {camera['longest_frozen']:>8,} {lag:>9}"
        )
    return lines


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The language tasks, one a line."""
    lines = [
        f"  {'task':12} {task['task_index']}: {task['task'] or 'no name'} ({task['episodes']:,} episodes, "
        f"{task['rows']:,} rows)"
        for task in tasks[:MOST_LINES]
    ]
    return lines + ([f"  (and {len(tasks) - MOST_LINES} more)"] if len(tasks) > MOST_LINES else [])


def _origin(provenance: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the data set was made from, and how it was changed, one a line."""
    lines = []
    for made in provenance:
        lines.append(f"  made from    {made['source']} ({made['content_hash'][:16]})")
        lines += [f"  {'':12} {change}" for change in made["changes"]]
    return lines


def _greatest(rewards: Mapping[str, Any]) -> str:
    # Where rewards have two values, the greatest are those above the least.
    if rewards["rows_at_greatest"] == rewards["rows_above_least"] or not rewards["rows_above_least"]:
        return ""
    return f", the greatest in {rewards['rows_at_greatest']:,} of {rewards['episodes_at_greatest']:,}"


def _validation(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none beside it; see rql-deploy data split"
    if "episodes" not in found:
        return str(found["name"])
    return (
        f"{found['episodes']:,} episodes, {found['rows']:,} rows ({found['share_of_rows']:.1%} of both), "
        f"{found['copies_of_training']:,} of them in training, too: {found['name']}"
    )


def _text(value: float | None) -> str:
    # Adding 0 makes 0 of -0.
    return "-" if value is None else f"{value + 0.0:.4g}"


def _short(name: str, most: int = 28) -> str:
    """A name that is too long keeps its end, where names of one kind differ."""
    return name if len(name) <= most else f"{name[: most // 3]}...{name[len(name) - most + most // 3 + 3 :]}"
