"""What a run needs of this machine and of others, looked for before it starts: the params alone do not tell."""

from __future__ import annotations

from lever_lib import decompose, jobs, psi_network, text
from lever_lib.params import Params


def check_needs(params: Params) -> None:
    """See that a cluster answers, a device and an encoder are there, and a language model can be asked.

    Raises:
        LeverError: naming what is not there.
    """
    if params.execution.scheduler is not None:
        jobs.check_cluster(params.execution.scheduler)
    if params.pi2vec.method == "network":
        psi_network.check_device(params.pi2vec.device)
    if params.search.encoder != text.EMBEDDED:
        text.encode(["a sentence"], params.search.encoder, params.search.trust_remote_code)
    if params.search.decompose == "llm" and params.llm.fallback == "error":
        decompose.check_model(params.llm)
