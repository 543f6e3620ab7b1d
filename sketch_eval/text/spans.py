"""An lm-eval task whose documents each ask for the likelihood of several texts."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class SpansTask(ConfigurableTask):
    """A `loglikelihood` task with several requests a document: its fields `contexts` and `continuations`, pairwise.

    `process_results` of the task's YAML file gets the document and a (log-likelihood, is greedy) for each request.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """The document's requests, in its order. The few-shot context ``ctx`` is empty."""
        for name in ("apply_chat_template", "chat_template"):
            kwargs.pop(name, None)
        pairs = zip(doc["contexts"], doc["continuations"], strict=True)
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=pair, idx=number, **kwargs)
            for number, pair in enumerate(pairs)
        ]
