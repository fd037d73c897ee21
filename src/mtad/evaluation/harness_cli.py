"""The command line of lm-evaluation-harness with the model `mtad` added."""

from lm_eval.__main__ import cli_evaluate

from mtad.evaluation.harness import MtadLM

__all__ = ["MtadLM"]

if __name__ == "__main__":
    cli_evaluate()
