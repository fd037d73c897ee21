"""`mtad evaluate --lm-eval`: tasks of lm-evaluation-harness."""

import argparse
from typing import Any

from mtad.cli.generate import load_engine
from mtad.cli.parser import read_evaluation
from mtad.cli.tables import format_table
from mtad.config import GenerationOptions, ModelOptions
from mtad.errors import ConfigError


def run_harness_tasks(options: argparse.Namespace, models: ModelOptions, generation: GenerationOptions) -> int:
    """Run the tasks with every contender, print the metrics and write `lm_eval.json`; returns the exit status."""
    evaluation = read_evaluation(options)
    tasks = [name for word in options.lm_eval for name in word.split(",") if name]

    from mtad.api.contenders import parse_contenders, spread_thresholds
    from mtad.decoding import needs_draft_model
    from mtad.results.files import write_json
    from mtad.results.provenance import describe_run

    try:
        from mtad.evaluation.harness import run_harness
    except ModuleNotFoundError as error:
        raise ConfigError(f"--lm-eval needs {error.name}; install it with pip install 'mtad[lm-eval]'") from error
    contenders = spread_thresholds(parse_contenders(options.rules, generation), options.thresholds)
    demanding = next((item.options for item in contenders if needs_draft_model(item.options)), contenders[0].options)
    engine = load_engine(models, demanding, color=options.color)
    path = None if options.lm_eval_path is None else str(options.lm_eval_path)
    rows: dict[str, Any] = {}
    for item in contenders:
        rows[item.label] = run_harness(
            engine,
            item.options,
            tasks,
            include_path=path,
            limit=evaluation.limit,
            batch_size=evaluation.batch_size,
        )
    record = {"kind": "lm_eval", "schema": 1, "run": describe_run(), "rows": rows}
    write_json(options.out / "lm_eval.json", record)
    if options.json:
        from mtad.cli.output import to_json

        print(to_json(record))
    else:
        print(format_table(("contender", "task", "metric", "value", "stderr"), _lines(rows)))
    return 0


def _lines(rows: dict[str, Any]) -> list[list[str]]:
    lines = []
    for label, tasks in rows.items():
        for task, metrics in tasks.items():
            for name, value in metrics.items():
                if isinstance(value, float) and "_stderr" not in name:
                    stderr = metrics.get("_stderr,".join(name.split(",", 1)))
                    shown = f"{stderr:.4f}" if isinstance(stderr, float) else ""
                    lines.append([label, task, name.removesuffix(",none"), f"{value:.4f}", shown])
    return lines
