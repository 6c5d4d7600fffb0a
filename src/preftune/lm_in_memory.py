"""lm-eval's interface to the model in memory, over our own scoring and generation.

Imported in the evaluation child only.
"""

# lm-eval's decorators hide its signatures from the type checker.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from collections.abc import Iterable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from preftune.generation import Decoding, generate
from preftune.loading import end_ids
from preftune.prefix import bare_model
from preftune.scoring import Score, answer_logps

_PLAIN = {"until", "max_gen_toks", "do_sample", "temperature"}  # settings of a generation that is greedy


class ModelInMemory(HFLM):
    """lm-eval's HFLM (which brings text to tokens as usual), whose forward passes are ours: answers to the same
    context share the reading of it, what was scored already is looked up, and an answer that has ended leaves the
    batch. Same results as HFLM's, but for a repetition penalty in the model's own settings, which is ignored.

    Args:
        model: A causal language model in eval mode; with or without an adapter.
        tokenizer: The starting model's.
        batch_size: Pairs in one forward pass (`evaluation.batch_size`).
        scored: (prompt ids, answer ids, score) of what this model has scored, uncut; a question about the beginning
            of such an answer costs nothing, if `lead` holds the white space that its prompt ends with.
        progress: From what is done to a function of (done, all).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        scored: Iterable[tuple[list[int], list[int], Score]] = (),
        progress: Any,
    ) -> None:
        # The templates' texts hold the start token already, if there is one.
        super().__init__(pretrained=bare_model(model), tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)
        self._ends = end_ids(tokenizer, model)
        self._pairs_at_once = batch_size
        self._progress = progress
        self._scored: dict[tuple[int, ...], list[tuple[list[int], Score]]] = {}
        for prompt, answer, score in scored:
            self._scored.setdefault(tuple(prompt), []).append((answer, score))
        self._longest_lead = max((len(s.lead) for known in self._scored.values() for _, s in known), default=0)

    def _known(self, context: list[int], answer: list[int]) -> tuple[float, bool] | None:
        """As `_loglikelihood_tokens`. lm-eval counts the white space at a context's end to the answer."""
        for space in range(self._longest_lead + 1):
            rest = answer[space:]
            for ids, score in self._scored.get(tuple(context + answer[:space]), ()):
                if ids[: len(rest)] == rest and len(score.lead) >= space:
                    before = score.lead[len(score.lead) - space :]
                    total = sum(nats for nats, _ in before) + sum(score.each[: len(rest)])
                    return total, all(is_it for _, is_it in before) and score.greedy >= len(rest)
        return None

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each continuation; cut on the left as HFLM does."""
        found = {i: known for i, (_, c, a) in enumerate(requests) if (known := self._known(c, a)) is not None}
        rest = [i for i in range(len(requests)) if i not in found]
        scores = answer_logps(
            self.model,
            [requests[i][1:] for i in rest],
            max_length=self.max_length + 1,
            batch_size=self._pairs_at_once * 2,
            keep_end=True,
            progress=self._progress("scored continuations"),
        )
        found |= {i: (s.logp, s.greedy == s.tokens) for i, s in zip(rest, scores, strict=True)}
        return [found[i] for i in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers each request; those that ask for sampling or anything else of transformers' go HFLM's way."""
        found: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(i)
        for members in alike.values():
            settings: dict[str, Any] = dict(normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks))
            if settings["do_sample"] or not settings.keys() <= _PLAIN:
                texts = super().generate_until([requests[i] for i in members], disable_tqdm=disable_tqdm)
            else:
                texts = self._greedy([requests[i].args[0] for i in members], settings)
            found |= zip(members, texts, strict=True)
        return [found[i] for i in range(len(requests))]

    def _greedy(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        stops = handle_stop_sequences(settings["until"], eos=self.tok_decode([self.eot_token_id], False))
        # As HFLM looks for them: in the last tokens, two more than the text has by itself.
        looked_at = [(s, len(self.tokenizer.encode(s, add_special_tokens=False)) + 2) for s in stops if s]
        room = self.max_length - settings["max_gen_toks"]
        answers = generate(
            self.model,
            [self.tok_encode(c, left_truncate_len=room) for c in contexts],
            Decoding(settings["max_gen_toks"]),
            eos_ids=self._ends,
            batch_size=self._pairs_at_once,
            ended=lambda ids: any(s in self.tokenizer.decode(ids[-n:]) for s, n in looked_at),
            progress=self._progress("answered questions"),
        )
        return [postprocess_generated_text(self.tok_decode(a.ids), stops, None) for a in answers]
